#!/usr/bin/env bash
# pgbench against three nodes of Isochrone and against PostgreSQL with two synchronous standbys (ANY 1 of 2), cell by cell in
# one run on this machine; all with fsync on, every commit on the disks of two of three.
#
#   cargo build --release && bench/cluster.sh           (about 3 minutes)
#   SECS=3 CLIENTS="8" bench/cluster.sh                 a quick look
#   SYSBENCH=1 bench/cluster.sh                         sysbench's oltp_* beside it
#
# pgbench's tables lie in one shard; its leader is put on the node that pgbench talks to, as PostgreSQL's clients talk to the
# primary. Row "via another node" does the same through a node that is not the leader. Prints transactions per second,
# failed transactions, and CPU of all server processes of all nodes per transaction. Load generator and servers share the
# cores. Needs pgbench and PostgreSQL's server (Debian: postgresql). Removes everything it started.
set -euo pipefail
SECS=${SECS:-5} SCALE=${SCALE:-10} CLIENTS=${CLIENTS:-1 8 32}
BIN=${BIN:-${CARGO_TARGET_DIR:-target}/release/isochrone}
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
PG=$(dirname "$(readlink -f "$(command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -1)")")
[ -x "$PG/initdb" ] || { echo "PostgreSQL's server is not installed" >&2; exit 2; }
work=$(mktemp -d)
as() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
[ "$(id -u)" = 0 ] && chown postgres "$work"
nodes=() pgs=()
cleanup() {
  for d in s2 s1 p; do as "$PG/pg_ctl" -D "$work/$d" -m immediate -w stop >/dev/null 2>&1 || true; done
  [ ${#nodes[@]} -eq 0 ] || kill -9 "${nodes[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
export PGHOST=127.0.0.1 PGUSER=root

as "$PG/initdb" -D "$work/p" -U root -A trust -E UTF8 --locale=C >/dev/null
as tee -a "$work/p/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '$work'
port = 5541
shared_buffers = 1GB
max_wal_size = 4GB
CONF
as "$PG/pg_ctl" -D "$work/p" -l "$work/p.log" -w start >/dev/null
for i in 1 2; do
  as env PGHOST=127.0.0.1 PGPORT=5541 PGUSER=root "$PG/pg_basebackup" -D "$work/s$i" -R -X stream -c fast
  printf "port = %d\ncluster_name = 's%d'\n" $((5541 + i)) "$i" | as tee -a "$work/s$i/postgresql.conf" >/dev/null
  as "$PG/pg_ctl" -D "$work/s$i" -l "$work/s$i.log" -w start >/dev/null
done
psql -qXAt -p 5541 postgres -c "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1, s2)'" -c "SELECT pg_reload_conf()" >/dev/null
for _ in $(seq 100); do
  [ "$(psql -qXAt -p 5541 postgres -c "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'")" = 2 ] && break
  sleep 0.1
done
for d in p s1 s2; do pgs+=("$(as head -1 "$work/$d/postmaster.pid")"); done

join=127.0.0.1:7641,127.0.0.1:7642,127.0.0.1:7643
for i in 1 2 3; do
  ISOCHRONE_LOG=warn "$BIN" start --data "$work/n$i" --sql 127.0.0.1:564$i --http 127.0.0.1:864$i --cluster 127.0.0.1:764$i \
    --join "$join" >"$work/n$i.log" 2>&1 &
  nodes+=($!)
done
"$BIN" init --cluster 127.0.0.1:7641 >/dev/null
for i in 1 2 3; do for _ in $(seq 500); do grep -q ^ready "$work/n$i.log" && break; sleep 0.02; done; done

cpu_us() { # of processes, their children, and their reaped children
  local p pids="$* "
  for p in "$@"; do pids+="$(pgrep -P "$p" | tr '\n' ' ') "; done
  for p in $pids; do cat "/proc/$p/stat" 2>/dev/null || true; done |
    awk -v tops=" $* " '{ s += $14 + $15; if (index(tops, " " $1 " ")) s += $16 + $17 } END { print s * 10000 }'
}
use() {
  case $1 in
    pg) export PGPORT=5541 PGDATABASE=postgres; servers=("${pgs[@]}") ;;
    iso) export PGPORT=5641 PGDATABASE=isochrone; servers=("${nodes[@]}") ;;
    via) export PGPORT=5642 PGDATABASE=isochrone; servers=("${nodes[@]}") ;;
  esac
}
for s in pg iso; do use $s; pgbench -i -q -s "$SCALE" >/dev/null 2>&1; done
psql -qX -c "ALTER SHARD 2 TRANSFER LEADER TO 1" >/dev/null
sleep 5 # what the load left behind to be cleaned up

cell() { # server, pgbench arguments
  local before after out n
  use "$1"; shift
  before=$(cpu_us "${servers[@]}"); out=$(pgbench -n -T "$SECS" -j 2 "$@" 2>&1)
  sleep 0.3 # the last of PostgreSQL's backends is counted when it was reaped
  after=$(cpu_us "${servers[@]}")
  n=$(awk '/actually processed/ { split($6, a, "/"); print a[1] }' <<<"$out")
  awk -v n="$n" -v c=$((after - before)) \
    '/failed transactions/ { f = $5 } /^tps/ { t = $3 } END { printf "%.0f %s %.0f\n", t, f, n ? c / n : 0 }' <<<"$out"
}
echo "| workload | clients | PostgreSQL tx/s | Isochrone tx/s | ratio | PostgreSQL us/tx | Isochrone us/tx | failed |"
echo "|---|---|---|---|---|---|---|---|"
row() { # name, server, clients, pgbench arguments
  local name=$1 server=$2 clients=$3; shift 3
  read -r pt pf pc < <(cell pg -c "$clients" "$@")
  read -r it if ic < <(cell "$server" -c "$clients" "$@")
  awk -v n="$name" -v c="$clients" -v pt="$pt" -v it="$it" -v pc="$pc" -v ic="$ic" -v f="$pf/$if" \
    'BEGIN { printf "| %s | %s | %s | %s | %.2f | %s | %s | %s |\n", n, c, pt, it, pt ? it / pt : 0, pc, ic, f }'
}
for c in $CLIENTS; do
  row "select-only, prepared" iso "$c" -S -M prepared
  row "select-only, prepared, via another node" via "$c" -S -M prepared
  row "simple-update, prepared" iso "$c" -N -M prepared
  row "simple-update, prepared, via another node" via "$c" -N -M prepared
  row "tpcb-like, prepared" iso "$c" -M prepared
  row "tpcb-like, simple" iso "$c" -M simple
done
[ -n "${SYSBENCH:-}" ] || exit 0
echo; echo "| oltp_, 4 threads | PostgreSQL tx/s | Isochrone tx/s | ratio |"; echo "|---|---|---|---|"
sb() { # server, script
  use "$1"
  local common=("oltp_$2" --db-driver=pgsql --pgsql-host=127.0.0.1 --pgsql-port="$PGPORT" --pgsql-user=root
    --pgsql-db="$PGDATABASE" --tables=1 --table-size=20000 --threads=4 --time="$SECS")
  sysbench "${common[@]}" prepare >/dev/null
  sysbench "${common[@]}" run | awk '/transactions:/ { gsub(/[^0-9.]/, "", $3); print $3 }'
  sysbench "${common[@]}" cleanup >/dev/null
}
for s in point_select update_index insert write_only read_write; do
  pt=$(sb pg $s) it=$(sb iso $s)
  awk -v n="$s" -v p="$pt" -v i="$it" 'BEGIN { printf "| %s | %.0f | %.0f | %.2f |\n", n, p, i, i / p }'
done
