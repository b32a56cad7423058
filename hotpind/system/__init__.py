"""The machine around the daemon: systemd's notifications and watchdog, the log, facts about the hardware."""
