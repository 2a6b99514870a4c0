# hosts.sh - hosts with networks of their own on this machine, for tests of what crosses one. To be sourced after
# common.sh; wants root, iproute2 and network namespaces, else the test ends as skipped.
#
# Each host is a network namespace with one interface, eth0, 10.78.0.1, 2, .. joined by a switch; its processes have its
# name (a UTS namespace), so that ranks, MPI and UCX take it for another machine. Files and process numbers are shared.
#
#     hosts_up N                  hosts 1 .. N, called h1 .. hN
#     hosts_rate RATE             what each may send ("100mbit"); hosts_rate: unlimited
#     ./hosts_mpirun N arguments  N ranks in equal blocks; mpirun runs on host 1
#     hosts_cut HOST, hosts_mend HOST   its cable out, in again
#     hosts_received HOST         bytes that have come to it over its interface
#     hosts_kill HOST             every process there dies at once

hosts_prefix=mudd$$
hosts_count=0

hosts_down() {
    local i
    for ((i = 1; i <= hosts_count; i++)); do
        ip netns pids "$hosts_prefix-h$i" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
        ip netns del "$hosts_prefix-h$i" 2>/dev/null || true
    done
    ip netns del "$hosts_prefix-switch" 2>/dev/null || true
}
trap 'hosts_down; rm -rf "$work"' EXIT

hosts_up() { # N
    local i
    if ! command -v ip >/dev/null || ! ip netns add "$hosts_prefix-switch" 2>/dev/null ||
        ! unshare --uts true 2>/dev/null; then
        echo "skipped: no hosts can be made here (root, iproute2 and network namespaces)"
        exit 77
    fi
    ip -n "$hosts_prefix-switch" link add bridge type bridge
    ip -n "$hosts_prefix-switch" link set bridge up
    for ((i = 1; i <= $1; i++)); do
        hosts_count=$i
        ip netns add "$hosts_prefix-h$i"
        ip link add eth0 netns "$hosts_prefix-h$i" type veth peer name "port$i" netns "$hosts_prefix-switch"
        ip -n "$hosts_prefix-switch" link set "port$i" master bridge up
        ip -n "$hosts_prefix-h$i" link set lo up
        ip -n "$hosts_prefix-h$i" addr add "10.78.0.$i/24" dev eth0
        ip -n "$hosts_prefix-h$i" link set eth0 up
    done
    # What mpirun starts instead of ssh: enter PREFIX ADDRESS command.
    cat >enter <<'END'
#!/bin/bash
prefix=$1 host=${2##*.}
shift 2
exec ip netns exec "$prefix-h$host" unshare --uts bash -c 'hostname "$0"; eval "$@"' "h$host" "$*"
END
    # Shared memory would reach another host here, for its files are shared.
    cat >hosts_mpirun <<END
#!/bin/bash
n=\$1 list=
shift
for ((i = 1; i <= $hosts_count; i++)); do
    list+=,10.78.0.\$i:\$((n / $hosts_count))
done
exec ip netns exec $hosts_prefix-h1 unshare --uts bash -c 'hostname h1; exec "\$@"' mpirun mpirun \
    --mca plm rsh --mca plm_rsh_agent "$PWD/enter $hosts_prefix" --mca btl tcp,self \
    --host "\${list#,}" -n "\$n" -x UCX_TLS=tcp,self -x UCX_NET_DEVICES=eth0 "\$@"
END
    chmod +x enter hosts_mpirun
}

hosts_rate() { # [RATE]
    local i
    for ((i = 1; i <= hosts_count; i++)); do
        ip netns exec "$hosts_prefix-h$i" tc qdisc del dev eth0 root 2>/dev/null || true
        [[ -z ${1:-} ]] || ip netns exec "$hosts_prefix-h$i" tc qdisc add dev eth0 root tbf rate "$1" \
            burst 256kb latency 200ms
    done
}

hosts_cut() { # HOST
    ip -n "$hosts_prefix-switch" link set "port$1" down
}

hosts_mend() { # HOST
    ip -n "$hosts_prefix-switch" link set "port$1" up
}

hosts_received() { # HOST
    ip netns exec "$hosts_prefix-h$1" cat /sys/class/net/eth0/statistics/rx_bytes
}

hosts_kill() { # HOST
    ip netns pids "$hosts_prefix-h$1" | xargs -r kill -KILL
}
