#!/bin/sh
# Called by udhcpc, which leaves what it learned in the environment.
# shellcheck disable=SC2154 # interface, ip, mask, router and dns are set by udhcpc
case $1 in
    bound | renew)
        ip addr flush dev "$interface"
        ip addr add "$ip/${mask:-24}" dev "$interface"
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface"
        done
        : >/etc/resolv.conf
        for server in $dns; do
            echo "nameserver $server" >>/etc/resolv.conf
        done
        ;;
esac
exit 0
