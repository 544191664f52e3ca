#!/bin/busybox sh
# First program of a virtual machine, in its initial memory file system. The machine's root is this machine's, read through
# 9p and never written: an overlay in the guest's memory takes what is written.
# From the kernel's command line: VM_ROOT (`host`: go over to that root; `own`: stay here), VM_INIT (`plain`, `systemd`).
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /host /upper /new /run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "observer-vm: cannot load $module"
done < /modules/order
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host || echo "observer-vm: no root"

if [ "$VM_ROOT" = own ]; then
    mkdir -p /run/observer-vm
    cp /guest.sh /job.sh /run/observer-vm/
    . /job.sh
    mkdir -p /lib/modules
    ln -s "$VM_MODULES" "/lib/modules/$(uname -r)"
    exec /bin/sh /run/observer-vm/guest.sh
fi

mount -t tmpfs upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work root /new
for folder in proc sys dev; do mount --move "/$folder" "/new/$folder"; done
mount -t tmpfs -o mode=755 run /new/run
# Temporary files want no overlay below them, and /tmp may be where the project is.
mkdir -p /new/run/observer-vm /new/lib/modules /new/observer-tmp
mount -t tmpfs -o mode=1777 tmp /new/observer-tmp
cp /guest.sh /job.sh /new/run/observer-vm/
. /job.sh
ln -s "$VM_MODULES" "/new/lib/modules/$(uname -r)"
# What this machine mounts is not the guest's, and that one is no container.
: > /new/etc/fstab
rm -f /new/.dockerenv

if [ "$VM_INIT" = systemd ]; then
    units=/new/run/systemd/system
    mkdir -p "$units"
    cp /observer-vm.service /observer-vm.target "$units/"
    : > /new/etc/machine-id
    # systemd would clear /tmp, or hide it.
    mkdir -p /new/etc/tmpfiles.d
    : > /new/etc/tmpfiles.d/tmp.conf
    ln -sf /dev/null /new/etc/systemd/system/tmp.mount
    exec switch_root /new /lib/systemd/systemd --unit=observer-vm.target
fi
exec switch_root /new /bin/sh /run/observer-vm/guest.sh
