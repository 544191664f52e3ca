# The job inside a virtual machine: prepares what an init would, or takes what systemd has prepared, runs job.sh with its
# output on the port that the outside reads, and ends the machine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/observer-tmp
. /run/observer-vm/job.sh

if [ "$$" = 1 ]; then
    mkdir -p /dev/pts /dev/shm /run/lock
    mount -t devpts devpts /dev/pts
    mount -t tmpfs shm /dev/shm
    for pair in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -sf "/proc/self/${pair#*:}" "/dev/${pair%%:*}"; done
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t bpf bpf /sys/fs/bpf
    mount -t securityfs securityfs /sys/kernel/security
    ip link set lo up
fi
mkdir -p /run/netns

for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = out ] && out=/dev/${port##*/}
done
prepare
if [ -n "$VM_SHELL" ]; then
    setsid sh -c 'exec $(command -v bash || echo sh) -i < /dev/hvc0 > /dev/hvc0 2>&1'
else
    job > "$out" 2>&1
    echo "observer-vm: ended with $?" > "$out"
fi
sync
echo o > /proc/sysrq-trigger
sleep 60
