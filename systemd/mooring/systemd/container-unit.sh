#!/bin/sh
# What the unit of a container does (shim-agent/mooring/shim/units.py), in the unit's own cgroup:
#   take SHIM               move the container's shim here; the unit lasts for as long as it does
#   stop SHIM ID PROGRAM    stop the container in order, if this is a stop: the unit has ended by
#                           itself if its shim is gone, and then the container has another one, or none
# A file, and no words in the unit: systemd forgets how it quoted them when it reads units again.
set -u
cgroup=$(sed -n 's,^0::,,p' /proc/self/cgroup)
[ -n "$cgroup" ] || cgroup=$(sed -n 's,^[0-9]*:name=systemd:,,p' /proc/self/cgroup)
# Version 2, or those hierarchies of a host with version 1 that systemd follows processes by.
for root in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    procs=$root$cgroup/cgroup.procs
    [ -e "$procs" ] || continue
    case $1 in
    take)
        [ "$(cat "/proc/$2/comm" 2>/dev/null)" != mooring-shim ] || echo "$2" >"$procs"
        ;;
    stop)
        grep -qx "$2" "$procs" || exit 0
        # With the host all containers end, and come back with it by their policies.
        [ "$(systemctl is-system-running)" != stopping ] || exit 0
        exec "$4" stop "$3"
        ;;
    esac
done
exit 0
