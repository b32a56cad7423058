# shellcheck shell=bash
# Set-up steps shared by scripts/run, scripts/test, scripts/install.sh and scripts/build-deb.sh.
#
# Every step can be interrupted at any moment, SIGKILL included, and done again: what is made is made under another
# name and moved into place, or is covered by a stamp that is written last.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$TOP/.venv
WORK=$TOP/.cache
STAMPS=$VENV/.hotpin
HOTPIN_CACHE=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/hotpin
WHEELS=$HOTPIN_CACHE/wheels

# arm_arch [CPUINFO]: what to build llama.cpp and whisper.cpp for on this ARM processor, when it can do more than every
# ARMv8. Quantised weights are multiplied by dot products, which a Raspberry Pi 5 and a Jetson Orin have and a Raspberry
# Pi 4 has not; without GGML_NATIVE, which takes all that the processor has, ggml does without unless it is told.
arm_arch() {
    local features
    [ "$(uname -m)" = aarch64 ] || return 0
    features=" $(sed -n '/^Features/{s/^[^:]*: *//p;q}' "${1:-/proc/cpuinfo}") "
    case $features in
    *" asimdhp "*"asimddp "*) printf armv8.2-a+dotprod+fp16 ;;
    *" asimddp "*) printf armv8.2-a+dotprod ;;
    esac
}
ARM_ARCH=${GGML_CPU_ARM_ARCH-$(arm_arch)}
NATIVE_ARGS="${ARM_ARCH:+-DGGML_CPU_ARM_ARCH=$ARM_ARCH }${CMAKE_ARGS:-}"
# What was built with other options must not be taken for the plain one, nor the other way round.
[ -z "$NATIVE_ARGS" ] || WHEELS=$WHEELS-$(printf '%s' "$NATIVE_ARGS" | sha256sum | cut -c 1-12)
LOCK_WAIT_S=600
STEP_PID=""
STEP_PATIENT=""

# Debian packages and why they are needed.
# shellcheck disable=SC2034  # used by the scripts that source this file
RUN_PACKAGES=(
    "python3|runs the appliance"
    "python3-venv|keeps its Python packages apart from the system's"
    "python3-dev|builds llama.cpp's and systemd's Python bindings"
    "gcc|builds llama.cpp and systemd's bindings"
    "g++|builds llama.cpp"
    "pkg-config|finds libsystemd"
    "libsystemd-dev|builds systemd's bindings (journal and watchdog)"
    "ca-certificates|lets downloads be verified"
)
# shellcheck disable=SC2034
BUILD_PACKAGES=("${RUN_PACKAGES[@]}" "dpkg|builds the package")

# No failure is silent, not even one in a place where none was expected.
set -E
trap 'printf "error: stopped at line %s of %s\n" "$LINENO" "${BASH_SOURCE[0]##*/}" >&2' ERR

say() { printf '%s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# group_lives PID: does any process of this process group still run? One that only waits for its parent does not.
group_lives() {
    local file stat fields
    for file in /proc/[0-9]*/stat; do
        { read -r stat <"$file"; } 2>/dev/null || continue
        read -ra fields <<<"${stat##*) }"
        [ "${fields[2]:-}" != "$1" ] || [ "${fields[0]}" = Z ] || return 0
    done
    return 1
}

# Ends the step that is running: a build at once with all its children, apt only by waiting for it. The children end
# later than the step itself, and one that was started this moment may not have its process group yet.
stop_step() {
    local signal=TERM end=$((SECONDS + 5))
    [ -n "$STEP_PID" ] || return 0
    if [ -n "$STEP_PATIENT" ]; then
        say "waiting for apt to finish, so that no package is left half installed"
    else
        while group_lives "$STEP_PID" || kill -0 "$STEP_PID" 2>/dev/null; do
            [ "$SECONDS" -lt "$end" ] || signal=KILL
            [ "$SECONDS" -lt $((end + 5)) ] || break
            kill -s "$signal" -- "-$STEP_PID" 2>/dev/null || kill -s "$signal" "$STEP_PID" 2>/dev/null || true
            sleep 0.05
        done
    fi
    wait "$STEP_PID" 2>/dev/null || true
    STEP_PID=""
}

interrupted() {
    trap '' INT TERM HUP
    stop_step
    say "interrupted; run the same command again to go on"
    exit 130
}

# What a step's log shows of its progress: ninja's [done/all], else the last line.
progress_of() {
    local count
    count=$({ grep -aoE '\[[0-9]+/[0-9]+\]' "$1" || true; } | tail -n 1)
    if [ -n "$count" ]; then
        printf '%s' "$count"
    else
        tail -n 1 "$1" | tr -cd '[:print:]' | cut -c 1-70
    fi
}

# quietly LABEL COMMAND [ARGUMENT...]: runs a program with its output in a log, shows every few seconds that it is
# alive, and the end of the log when it fails. The program gets a process group of its own, so that it can be ended
# with its children; with STEP_PATIENT set it is never ended.
quietly() {
    local label=$1 log started every=10 shown=0 status=0 elapsed
    shift
    mkdir -p "$WORK/logs"
    log=$WORK/logs/$(printf '%s' "$label" | tr -c 'a-zA-Z0-9' '-').log
    started=$SECONDS
    if [ -n "$STEP_PATIENT" ]; then
        "$@" >"$log" 2>&1 </dev/null 9>&- &
    else
        setsid "$@" >"$log" 2>&1 </dev/null &
    fi
    STEP_PID=$!
    [ -t 1 ] && every=1
    while kill -0 "$STEP_PID" 2>/dev/null; do
        sleep 0.2
        elapsed=$((SECONDS - started))
        if [ $((elapsed - shown)) -ge "$every" ]; then
            shown=$elapsed
            if [ -t 1 ]; then
                printf '\r\033[K%s: %d s  %s' "$label" "$elapsed" "$(progress_of "$log")"
            else
                printf '%s: %d s  %s\n' "$label" "$elapsed" "$(progress_of "$log")"
            fi
        fi
    done
    wait "$STEP_PID" || status=$?
    STEP_PID=""
    [ -t 1 ] && printf '\r\033[K'
    if [ "$status" -ne 0 ]; then
        grep -av '^[[:space:]]*$' "$log" | tail -n 30 >&2
        printf 'error: %s failed (exit status %d); everything it said is in %s\n' "$label" "$status" "$log" >&2
        return "$status"
    fi
    say "$label: done ($((SECONDS - started)) s)"
}

# visibly COMMAND...: like quietly, for a program that shows its progress itself.
visibly() {
    local status=0
    setsid "$@" </dev/null &
    STEP_PID=$!
    wait "$STEP_PID" || status=$?
    STEP_PID=""
    return "$status"
}

# Lets one set-up at a time into this tree. A set-up that was killed may have left its children working: they hold the
# lock file open as descriptor 9, and are ended.
take_lock() {
    local file=$WORK/setup.lock owner held pid said=""
    mkdir -p "$WORK"
    exec 9>>"$file"
    trap interrupted INT TERM HUP
    until flock --nonblock 9; do
        owner=$(tail -n 1 "$file" 2>/dev/null)
        if [ -n "$owner" ] && [ "$(readlink "/proc/$owner/fd/9" 2>/dev/null)" = "$file" ]; then
            [ -n "$said" ] || say "another set-up is at work here (process $owner); waiting for it"
            said=yes
        else
            for held in /proc/[0-9]*/fd/9; do
                [ "$(readlink "$held" 2>/dev/null)" = "$file" ] || continue
                pid=${held#/proc/}
                pid=${pid%%/*}
                [ "$pid" = "$$" ] || kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null || true
            done
        fi
        sleep 0.5
    done
    printf '%s\n' "$$" >"$file"
}

release_lock() {
    trap - INT TERM HUP
    exec 9>&-
}

# root COMMAND...: as root, through sudo when there is need.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        env "$@"
    else
        sudo -n env "$@"
    fi
}

# as_owner COMMAND...: as who called sudo when the clone is theirs, so that nothing in it becomes root's and their built
# wheels are found; else as root.
as_owner() {
    local home
    if [ -z "${SUDO_USER:-}" ] || [ "$SUDO_USER" = root ] || [ "$(stat -c %U "$TOP")" != "$SUDO_USER" ]; then
        "$@"
        return
    fi
    home=$(getent passwd "$SUDO_USER" | cut -d : -f 6)
    runuser -u "$SUDO_USER" -- env HOME="$home" "$@"
}

apt_install() {
    as_root DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        -o DPkg::Lock::Timeout="$LOCK_WAIT_S" "$@"
}

# when_unlocked COMMAND...: again and again while another apt or dpkg holds the lock that it needs. dpkg itself does not
# wait, and a set-up that was killed may have left its apt at work.
when_unlocked() {
    local said status end=$((SECONDS + LOCK_WAIT_S))
    while true; do
        status=0
        said=$("$@" 2>&1) || status=$?
        printf '%s\n' "$said"
        if [ "$status" -eq 0 ] || [[ $said != *lock* ]] || [ "$SECONDS" -ge "$end" ]; then
            return "$status"
        fi
        sleep 1
    done
}

# need_packages "NAME|why"...: installs the Debian packages that are missing, and says which and why.
need_packages() {
    local entry name installed missing=()
    if ! command -v dpkg-query >/dev/null; then
        say "note: this is not a Debian system; please see that these are installed: ${*%%|*}"
        return 0
    fi
    # dpkg-query fails when it does not know one of them.
    installed=" $({ dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${@%%|*}" 2>/dev/null || true; } |
        awk '$1 == "installed" { printf "%s ", $2 }')"
    for entry in "$@"; do
        name=${entry%%|*}
        [[ $installed == *" $name "* ]] || missing+=("$entry")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Debian packages that are missing and will be installed:"
    for entry in "${missing[@]}"; do
        say "  ${entry%%|*}: ${entry#*|}"
    done
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            fail "you are not root and there is no sudo; ask the administrator to run: apt-get install ${missing[*]%%|*}"
        # Who may use sudo without a password may have none to give, and sudo -v would ask for it.
        sudo -n true 2>/dev/null || sudo -v ||
            fail "sudo refused; ask the administrator to run: apt-get install ${missing[*]%%|*}"
    fi
    STEP_PATIENT=yes
    if [ -n "$(dpkg --audit 2>/dev/null)" ]; then
        quietly "finishing an interrupted package installation" \
            when_unlocked as_root LC_ALL=C DEBIAN_FRONTEND=noninteractive dpkg --configure -a
    fi
    # Lists may be absent (a fresh image) or too old (the mirror no longer has that version): then they are renewed.
    if ! apt-cache show "${missing[@]%%|*}" >/dev/null 2>&1 ||
        ! quietly "Debian packages" apt_install "${missing[@]%%|*}" 2>/dev/null; then
        quietly "package lists" when_unlocked as_root LC_ALL=C apt-get update
        quietly "Debian packages" apt_install "${missing[@]%%|*}"
    fi
    STEP_PATIENT=""
}

# stamped NAME TEXT: is the step NAME done for exactly these inputs?
stamped() { [ -f "$STAMPS/$1" ] && [ "$(<"$STAMPS/$1")" = "$2" ]; }

stamp() {
    printf '%s\n' "$2" >"$STAMPS/.$1.new"
    mv -f "$STAMPS/.$1.new" "$STAMPS/$1"
}

# Moved first, deleted then: an interrupted deletion must not leave something that looks whole.
discard() {
    mkdir -p "$WORK/trash"
    [ ! -e "$1" ] || mv "$1" "$WORK/trash/$$-$RANDOM"
    rm -rf "$WORK/trash"
}

need_python() {
    PYTHON=${HOTPIN_PYTHON:-/usr/bin/python3}
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$PYTHON is not Python 3.11 or newer; name another with HOTPIN_PYTHON=/path/to/python3"
}

# The virtual environment. One whose making or filling was cut short is made anew: pip takes a package for installed
# as soon as its metadata is there.
need_venv() {
    local want
    want="$PYTHON $("$PYTHON" -c 'import sys; print(sys.version.split()[0])') $TOP"
    if [ ! -e "$STAMPS/filling" ] && stamped venv "$want" && [ -x "$VENV/bin/python" ]; then
        return 0
    fi
    discard "$VENV"
    quietly "virtual environment" "$PYTHON" -m venv "$VENV" || {
        discard "$VENV"
        exit 1
    }
    mkdir -p "$STAMPS"
    stamp venv "$want"
}

pin_of() { sed -n "s/^$1==//p" "$TOP/constraints.txt"; }

# wheel_of PACKAGE: the wheel that was built of its pinned version, if there is one for this architecture and this
# Python, or for any Python.
wheel_of() {
    local name tag
    name=$WHEELS/${1//-/_}-$(pin_of "$1")
    tag=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    compgen -G "$name-py3-none-*_$(uname -m).whl" || compgen -G "$name-$tag-*_$(uname -m).whl"
}

# need_wheel PACKAGE LABEL NOTE VARIABLE=VALUE...: a native package of the pinned version, built once for all clones of
# this user and for any machine of this architecture.
need_wheel() {
    local package=$1 label=$2 note=$3 version temporary wheel
    shift 3
    version=$(pin_of "$package")
    wheel_of "$package" >/dev/null && return 0
    mkdir -p "$WHEELS"
    exec 8>>"$WHEELS/.lock"
    flock --nonblock 8 || {
        say "$label is being built by another set-up; waiting for it"
        flock 8
    }
    if wheel_of "$package" >/dev/null; then
        exec 8>&-
        return 0
    fi
    rm -rf "$WHEELS"/.build.*
    temporary=$(mktemp -d "$WHEELS/.build.XXXXXX")
    say "$label is built once ($note)"
    # Without the cache: a wheel that pip kept from elsewhere may have been built for one processor only.
    quietly "building $label" env "$@" TMPDIR="$temporary" \
        "$VENV/bin/pip" wheel --verbose --no-cache-dir --no-deps --wheel-dir "$temporary" \
        --no-binary "$package" "$package==$version" || {
        rm -rf "$temporary"
        exit 1
    }
    for wheel in "$temporary"/*.whl; do
        mv -f "$wheel" "$WHEELS/"
    done
    rm -rf "$temporary"
    exec 8>&-
}

# whisper.cpp's wheel on PyPI lacks the kernels that make its encoder a third faster (GGML_LLAMAFILE), which is what the
# end of speech waits for. Its build takes CMake variables from the environment, and would add to its version the commit
# of any Git repository around it, such as a home directory's.
need_native_wheels() {
    need_wheel llama-cpp-python llama.cpp "about 5 minutes on two x86 cores, half an hour on a Raspberry Pi 4" \
        CMAKE_ARGS="-DGGML_NATIVE=OFF $NATIVE_ARGS"
    need_wheel pywhispercpp whisper.cpp "about 2 minutes on two x86 cores, 10 on a Raspberry Pi 4" \
        CMAKE_ARGS= GGML_NATIVE=OFF GGML_LLAMAFILE=ON BUILD_SHARED_LIBS=OFF CMAKE_POSITION_INDEPENDENT_CODE=ON \
        GGML_CPU_ARM_ARCH="$ARM_ARCH" PYWHISPERCPP_VERSION="$(pin_of pywhispercpp)"
}

# The second speech engine (the extra whisper-cpp-python), for the tests and for settings that ask for it. Without its
# dependencies: librosa and numba serve a file interface that is not used, and want an older numpy.
need_second_engine() {
    local version
    version=$(pin_of whisper-cpp-python)
    stamped whisper-cpp-python "$version" && return 0
    need_wheel whisper-cpp-python whisper-cpp-python "half a minute" CMAKE_POLICY_VERSION_MINIMUM=3.5
    : >"$STAMPS/filling"
    pip_install "whisper-cpp-python" --no-deps --no-index --find-links "$WHEELS" "whisper-cpp-python==$version" || exit 1
    stamp whisper-cpp-python "$version"
    rm -f "$STAMPS/filling"
}

pip_install() {
    quietly "$1" "$VENV/bin/pip" install --no-input --progress-bar off --disable-pip-version-check \
        --constraint "$TOP/constraints.txt" "${@:2}"
}

# need_project run|test: the pinned packages and the project itself, editable.
need_project() {
    local extras=systemd inputs native
    inputs=$(cd "$TOP" && { cat setup.cfg pyproject.toml constraints.txt hotpind/__init__.py &&
        printf '%s' "$NATIVE_ARGS"; declare -f need_native_wheels; } | sha256sum | cut -d ' ' -f 1)
    [ "$1" = run ] || extras=systemd,test
    stamped "packages-$1" "$inputs" && return 0
    need_native_wheels
    : >"$STAMPS/filling"
    # pip would keep those that are there, as their versions are the same.
    native="llama-cpp-python pywhispercpp $NATIVE_ARGS"
    if ! stamped native "$native" && [ -e "$STAMPS/packages-run" ]; then
        say "llama.cpp and whisper.cpp as they were built here (options '$NATIVE_ARGS') take the others' place"
        quietly "other native packages" "$VENV/bin/pip" uninstall --yes --quiet llama-cpp-python pywhispercpp || exit 1
    fi
    # Build tools are pinned as well, which pip's own isolated builds would not be.
    pip_install "build tools" pip setuptools wheel || exit 1
    pip_install "Python packages" --no-build-isolation --find-links "$WHEELS" --only-binary llama-cpp-python \
        "$(wheel_of pywhispercpp)" --editable "${TOP}[$extras]" || exit 1
    stamp native "$native"
    stamp "packages-$1" "$inputs"
    [ "$1" = run ] || stamp packages-run "$inputs"
    rm -f "$STAMPS/filling"
}

# read_settings FILE: what the set-up has to know of the daemon's settings, as the daemon itself would read them, in
# MODELS_DIR, SPEECH_ENGINE and MODELS_ASKED_FOR. Kept, since asking takes longer than all other looks together.
read_settings() {
    local answer inputs kept=()
    inputs=$({ cat "$1" "$TOP"/hotpind/config/*.py &&
        { env | grep -E '^(HOTPIN_|XDG_CACHE_HOME=|CACHE_DIRECTORY=|HOME=)' || true; } | sort; } |
        sha256sum | cut -d ' ' -f 1) || fail "the settings $1 cannot be read"
    [ ! -f "$STAMPS/settings" ] || mapfile -t kept <"$STAMPS/settings"
    if [ "${kept[0]:-}" != "$inputs" ]; then
        answer=$(env -C "$TOP" "$VENV/bin/python" - "$1" <<'PYTHON'
import sys
from pathlib import Path

from hotpind.config import load_config
from hotpind.config.paths import models_dir
from hotpind.errors import ConfigError

try:
    config = load_config(Path(sys.argv[1]))
except ConfigError as error:
    sys.exit(str(error))
stt, tts = (config.stt.uri or config.stt.model), (config.tts.uri or config.tts.voice)
print(models_dir(config), "" if config.stt.uri else config.stt.engine, f"{stt} {tts} {config.chat.local.model}",
      sep="\n")
PYTHON
        ) || fail "the settings are wrong; what to change is said above"
        stamp settings "$inputs"$'\n'"$answer"
        mapfile -t kept <"$STAMPS/settings"
    fi
    MODELS_DIR=${kept[1]}
    SPEECH_ENGINE=${kept[2]}
    MODELS_ASKED_FOR=${kept[3]}
}

# need_models test: the default models, where the tests look for them. need_models run FILE: those that the settings in
# FILE ask for, after read_settings. The stamp covers what lies in the directory, so that a deleted file is fetched
# again.
need_models() {
    local which=${1:-test} directory inputs pull=(pull --default)
    if [ "$which" = run ]; then
        directory=$MODELS_DIR
        pull=(pull --config "$2")
    else
        directory=${HOTPIN_PATHS__MODELS:-$HOTPIN_CACHE/models}
        pull+=(--dir "$directory")
    fi
    mkdir -p "$directory"
    models_state() {
        sha256sum <"$TOP/hotpind/models/catalogue.toml"
        [ "$which" = test ] || printf '%s\n' "$MODELS_ASKED_FOR"
        find "$directory" -name prepared -prune -o -type f -printf '%p %s %T@\n' 2>/dev/null | sort
    }
    inputs=$(models_state | sha256sum)
    stamped "models-$which" "$inputs" && return 0
    say "models (the default ones are about 250 MB, fetched once)"
    visibly env -C "$TOP" "$VENV/bin/python" -m hotpind.cli.models "${pull[@]}" ||
        fail "the models could not be fetched; run the same command again to go on where it stopped"
    stamp "models-$which" "$(models_state | sha256sum)"
}
