#!/usr/bin/env bash
# pgbench against Isochrone and PostgreSQL, cell by cell in one run on this machine, both with fsync on.
#
#   cargo build --release && bench/pgbench.sh           (about 4 minutes)
#   SECS=3 CLIENTS="8" bench/pgbench.sh                 a quick look
#
# Prints, per cell: transactions per second, failed transactions, and server CPU (user + system, all server processes)
# per transaction. Load generator and servers share the cores, so tx/s depend on their number; CPU per transaction
# much less so. Needs pgbench, psql, initdb, pg_ctl (Debian: postgresql). Removes everything it started.
set -euo pipefail
SECS=${SECS:-5} SCALE=${SCALE:-10} CLIENTS=${CLIENTS:-1 8 32}
. "$(dirname "$0")/lib.sh"
for s in pg iso; do use $s; pgbench -i -q -s "$SCALE" >/dev/null 2>&1; done
sleep 5 # what the load left behind to be cleaned up

cell() { # server, pgbench arguments
  local s=$1 pid before after out n; shift
  use "$s"; pid=$([ "$s" = pg ] && echo "$pg" || echo "$iso")
  before=$(cpu_us "$pid"); out=$(pgbench -n -T "$SECS" -j 2 "$@" 2>&1)
  sleep 0.3 # the last of PostgreSQL's backends is counted when it was reaped
  after=$(cpu_us "$pid")
  n=$(awk '/actually processed/ { split($6, a, "/"); print a[1] }' <<<"$out")
  awk -v n="$n" -v c=$((after - before)) \
    '/failed transactions/ { f = $5 } /^tps/ { t = $3 } END { printf "%.0f %s %.0f\n", t, f, n ? c / n : 0 }' <<<"$out"
}
echo "| workload | clients | PostgreSQL tx/s | Isochrone tx/s | ratio | PostgreSQL us/tx | Isochrone us/tx | failed |"
echo "|---|---|---|---|---|---|---|---|"
row() { # name, clients, pgbench arguments
  local name=$1 clients=$2; shift 2
  read -r pt pf pc < <(cell pg -c "$clients" "$@")
  read -r it if ic < <(cell iso -c "$clients" "$@")
  awk -v n="$name" -v c="$clients" -v pt="$pt" -v it="$it" -v pc="$pc" -v ic="$ic" -v f="$pf/$if" \
    'BEGIN { printf "| %s | %s | %s | %s | %.2f | %s | %s | %s |\n", n, c, pt, it, pt ? it / pt : 0, pc, ic, f }'
}
for c in $CLIENTS; do
  for m in simple extended prepared; do row "select-only, $m" "$c" -S -M $m; done
  for m in simple extended prepared; do row "simple-update, $m" "$c" -N -M $m; done
  for m in simple extended prepared; do row "tpcb-like, $m" "$c" -M $m; done
done
