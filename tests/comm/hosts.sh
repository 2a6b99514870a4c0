#!/bin/bash
# Makes each rank believe that it runs on a host of its own, with a clock of its own: a command that
# mpirun starts, hosts.sh PROGRAM [arguments]. Needs the right to make namespaces.
exec unshare --uts --time --monotonic=$((OMPI_COMM_WORLD_RANK * 1000)) --fork --kill-child \
    bash -c 'hostname "host$OMPI_COMM_WORLD_RANK" && exec "$@"' rank "$@"
