"""Whether this machine is a copy of a checkpoint that quiesce booted aside, to see how it starts.

The host says so in the SMBIOS data of the copy (type 11, OEM strings): the kernel has them before any program runs. A program
in a machine cannot put them there; who can change a VM's definition can do more than that.

So that nothing in a copy acts, a systemd generator (GENERATOR) masks units before systemd starts the first: all timers, cron
and at, mail servers, and the units that the administrator lists in KEPT_DOWN. The copy has no network besides."""

from __future__ import annotations

import re

TABLE = "/sys/firmware/dmi/tables/DMI"
"""The SMBIOS data as the kernel found it, for root only. drivers/firmware/dmi_scan.c; there without any module."""
PREFIX = "io.quiesce.trial="
FLAG = "/run/quiesce/trial"
"""There in a copy, before any service starts: for ConditionPathExists= in the administrator's own units."""
KEPT_DOWN = "/etc/quiesce/verify.mask"
CHECKS = "/etc/quiesce/verify.d"
"""The administrator's own checks: programs that end with 0 if all is well, run in the order of their names."""
GENERATOR = "/etc/systemd/system-generators/quiesce-trial"
_ID = re.compile(rb"io\.quiesce\.trial=([0-9a-f-]{36})\0")

GENERATOR_TEXT = f"""\
#!/bin/sh
# quiesce: in a copy that is booted aside to see how it starts, keeps from starting what acts by itself; systemd.generator(7).
grep -aq '{PREFIX}' {TABLE} 2>/dev/null || exit 0
early=$2
mask() {{ ln -sf /dev/null "$early/$1"; }}
for unit in cron crond cronie anacron fcron atd postfix exim4 exim sendmail opensmtpd smtpd nullmailer \\
    systemd-networkd-wait-online NetworkManager-wait-online ifupdown-wait-online; do
    mask "$unit.service"
done
mask timers.target
for file in /etc/systemd/system/*.timer /usr/local/lib/systemd/system/*.timer /usr/lib/systemd/system/*.timer \\
    /lib/systemd/system/*.timer; do
    [ -e "$file" ] || [ -L "$file" ] && mask "${{file##*/}}"
done
[ -r {KEPT_DOWN} ] && while read -r unit more; do
    case $unit in ''|\\#*|*/*) ;; *) mask "$unit" ;; esac
done <{KEPT_DOWN}
cat >"$early/quiesce-trial.service" <<'END'
[Unit]
Description=quiesce: this machine is a copy that is booted aside
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'umask 077; mkdir -p /run/quiesce; : >{FLAG}'
ExecStart=-/bin/sh -c 'echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind; echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind'
END
mkdir -p "$early/sysinit.target.wants"
ln -sf ../quiesce-trial.service "$early/sysinit.target.wants/quiesce-trial.service"
"""
"""Shell, not Python: it runs at every start of every machine that has the agent, before anything else."""


def trial_id() -> str:
    """The id that the host gave this copy; empty if this machine is none."""
    try:
        with open(TABLE, "rb") as file:
            match = _ID.search(file.read(1 << 20))
    except OSError:
        return ""
    return match.group(1).decode() if match else ""
