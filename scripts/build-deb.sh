#!/usr/bin/env bash
# Builds dist/hotpind_VERSION_ARCHITECTURE.deb: /opt/hotpind with its own Python environment, the unit, the
# configuration. The package fits the Debian release and architecture of the machine that builds it, and the Python that
# builds it: the system's, or another that came from a Debian package and is named with HOTPIN_PYTHON. On ARM it also
# fits processors like that machine's.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: scripts/build-deb.sh [--version VERSION] [--output DIRECTORY] [--fast]

  --version   another version than the one in hotpind/__init__.py
  --output    directory of the package (default dist/)
  --fast      do not compress (a package that stays on this machine)

HOTPIN_PYTHON names another Python than /usr/bin/python3; it has to come from a Debian package, such as
/usr/bin/python3.11. CMAKE_ARGS are given to the build of llama.cpp. On ARM the package is for processors that
can do what this machine's can; GGML_CPU_ARM_ARCH=armv8-a makes a slower one for all.
TEXT
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$TOP/hotpind/__init__.py")
output=$TOP/dist
compression=(-Zzstd -z12)
while [ $# -gt 0 ]; do
    case $1 in
    --version)
        version=${2:?--version needs a value}
        shift
        ;;
    --output)
        output=${2:?--output needs a value}
        shift
        ;;
    --fast) compression=(-Znone) ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) fail "unknown option $1; see --help" ;;
    esac
    shift
done

# what_python_needs: the packages that the environment depends on, as it holds only a link to the interpreter.
what_python_needs() {
    local minor owner
    minor=$("$PYTHON" -c 'import sys; print(sys.version_info.minor)')
    if [ "$PYTHON" = /usr/bin/python3 ]; then
        printf 'python3 (>= 3.%d), python3 (<< 3.%d)' "$minor" $((minor + 1))
        return 0
    fi
    owner=$(dpkg-query -S "$(readlink -f "$PYTHON")" 2>/dev/null | cut -d : -f 1) || true
    [ -n "$owner" ] || return 1
    printf '%s' "${owner%-minimal}"
}

take_lock
need_packages "${BUILD_PACKAGES[@]}"
need_python
depends=$(what_python_needs) ||
    fail "$PYTHON comes from no Debian package, so a package cannot depend on it; use scripts/run with it, or another"
need_venv
need_project run
# The environment may be complete while the wheels that it was made from belong to another user, or are gone.
need_native_wheels

stage=$WORK/deb.$$
trap 'rm -rf "$stage"' EXIT
rm -rf "$WORK"/deb.*
mkdir -p "$stage/source" "$stage/wheels" "$output"
root=$stage/root

# Built from a copy: setuptools leaves its workings beside the source.
cp -r "$TOP/hotpind" "$TOP/setup.cfg" "$TOP/pyproject.toml" "$TOP/LICENSE" "$stage/source/"
cp "$TOP/README.md" "$stage/source/" 2>/dev/null || : >"$stage/source/README.md"
find "$stage/source" -name __pycache__ -prune -exec rm -rf {} +
sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$stage/source/hotpind/__init__.py"

# pip is part of it: it fetches the default models.
quietly "wheels" "$VENV/bin/pip" wheel --no-input --progress-bar off --disable-pip-version-check \
    --constraint "$TOP/constraints.txt" --no-build-isolation --find-links "$WHEELS" \
    --only-binary llama-cpp-python --wheel-dir "$stage/wheels" \
    "$(wheel_of pywhispercpp)" "$stage/source[systemd]" pip

install -d "$root/opt/hotpind"
"$PYTHON" -m venv --without-pip "$root/opt/hotpind/venv"
quietly "package's environment" "$VENV/bin/pip" --python "$root/opt/hotpind/venv/bin/python" install --no-input \
    --disable-pip-version-check --no-compile --no-index --find-links "$stage/wheels" "hotpind[systemd]==$version" pip

# What was made here must work in /opt.
bin=$root/opt/hotpind/venv/bin
find "$bin" -type f ! -name hotpind ! -name hotpinctl -delete
grep -lI "$root" "$bin"/* "$root/opt/hotpind/venv/pyvenv.cfg" | xargs -r sed -i "s|$root||g"
quietly "byte code" "$PYTHON" -m compileall -q -j 2 --invalidation-mode unchecked-hash -s "$root" -p / \
    "$root/opt/hotpind/venv/lib"
if grep -rlI "$root" "$root/opt/hotpind" | grep -v '/RECORD$' | grep .; then
    fail "the files above still name the directory they were built in"
fi

install -D -m 0644 "$TOP/systemd/hotpind.service" "$root/usr/lib/systemd/system/hotpind.service"
install -D -m 0644 "$TOP/systemd/hotpind.sysusers" "$root/usr/lib/sysusers.d/hotpind.conf"
install -D -m 0644 "$TOP/systemd/hotpind.tmpfiles" "$root/usr/lib/tmpfiles.d/hotpind.conf"
install -D -m 0644 "$TOP/systemd/examples/jetson-cuda.conf" "$root/usr/share/doc/hotpind/examples/jetson-cuda.conf"
install -D -m 0644 "$TOP/LICENSE" "$root/usr/share/doc/hotpind/copyright"
install -D -m 0644 "$stage/source/README.md" "$root/usr/share/doc/hotpind/README.md"
install -d -m 0755 "$root/usr/share/doc/hotpind/docs"
install -m 0644 "$TOP"/docs/*.md "$TOP"/docs/*.svg "$root/usr/share/doc/hotpind/docs/"
install -D -m 0644 "$TOP/config/hotpin.toml" "$root/etc/hotpin/hotpin.toml"
install -D -m 0755 "$TOP/packaging/hotpinctl" "$root/usr/bin/hotpinctl"
ln -s /opt/hotpind/venv/bin/hotpind "$root/usr/bin/hotpind"

install -d "$root/DEBIAN"
for script in postinst prerm postrm; do
    install -m 0755 "$TOP/packaging/$script" "$root/DEBIAN/$script"
done
echo /etc/hotpin/hotpin.toml >"$root/DEBIAN/conffiles"
architecture=$(dpkg --print-architecture)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@PYTHON_PACKAGES@/$depends/" \
    -e "s/@SIZE@/$(du -sk --apparent-size "$root/opt" | cut -f 1)/" "$TOP/packaging/control.in" >"$root/DEBIAN/control"

package=hotpind_${version}_$architecture.deb
quietly "package" dpkg-deb --root-owner-group "${compression[@]}" --build "$root" "$stage/$package"
mv -f "$stage/$package" "$output/$package"
say "$output/$package ($(du -h "$output/$package" | cut -f 1))"
