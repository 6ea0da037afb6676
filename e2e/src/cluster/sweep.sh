# Ends what runs for one run of the cluster, and undoes what it left in the kernel and on the disk.
#
#   sh -c "$(cat sweep.sh)" sweep FOLDER CGROUP MODE
#
# reboot  what a power cut would do to a node: every process of the node's cgroup and of its
#         containers dies, mounts, network namespaces and runtime state are gone
# keep    the same, and everything in FOLDER but its logs is removed
# remove  the same, and FOLDER is removed
# wait    reads one of these words from stdin; its end without a word, which is the owner's death,
#         means keep
#
# A script, and not code of ours, because it has to run when we are dead.
folder=$1 cgroup=$2 mode=$3
if [ "$mode" = wait ]; then
  read -r mode || mode=keep
fi

groups() {
  find /sys/fs/cgroup -maxdepth 2 -type d -name "$cgroup" 2>/dev/null
}

# The members of the cgroup with all their descendants: a container of a lone containerd is in no
# cgroup of ours, but a child of a shim that is.
tree() {
  for pid in "$@"; do
    echo "$pid"
    tree $(cat /proc/"$pid"/task/*/children 2>/dev/null)
  done
}
members() {
  for group in $(groups); do
    find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null
  done | sort -u
}

# Until there is none: what is being killed may just have made another.
tries=0
while pids=$(tree $(members) | sort -u) && [ -n "$pids" ]; do
  kill -KILL $pids 2>/dev/null
  tries=$((tries + 1))
  if [ "$tries" -gt 200 ]; then
    echo "sweep: these do not end:" $pids
    break
  fi
  sleep 0.05
done

# A mount below another comes later in the list, and goes first.
awk -v below="$folder/" 'index($2, below) == 1 { print $2 }' /proc/self/mounts | tac |
  while read -r mount; do
    umount "$mount" 2>/dev/null || umount -l "$mount"
  done

for group in $(groups); do
  find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
done

# What the runtime keeps outside of its folders, because the paths are fixed. A shim's sockets are
# called after the hash of what they belong to.
state=$folder/containerd/state
for bundle in "$state"/io.containerd.runtime.v2.task/*/*; do
  owner=$folder/containerd/containerd.sock/${bundle#"$state"/*/}
  for socket in "$owner" "$owner/debug"; do
    hash=$(printf %s "$socket" | sha256sum)
    rm -f "/run/containerd/s/${hash%% *}"
  done
done
grep -l -F "$folder/" /var/lib/cni/results/* 2>/dev/null | xargs -r rm -f
find /var/log/containers -maxdepth 1 -lname "$folder/*" -delete 2>/dev/null
rm -rf --one-file-system "$state"
# Where a kubelet waits for device plugins. Another run's may do so.
plugins=/var/lib/kubelet/device-plugins/kubelet.sock
grep -q -F "$plugins" /proc/net/unix || rm -f "$plugins"

case $mode in
keep) find "$folder" -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf --one-file-system {} + ;;
remove) rm -rf --one-file-system "$folder" ;;
esac
exit 0
