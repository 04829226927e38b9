# The measurements of bench/run, in their order. Each one calls `figure` for its results and leaves the output of the
# programs in $out/raw.
#
# The server's CPU time is the time of all its threads on a CPU, user and system, as the kernel's scheduler counts it in
# nanoseconds. It is divided by the number of requests that the client counted.

parts() { echo rules recovery refusals counting pairs latency_of_refusals many_connections hostile_mix upgrades sell_outs durable_latency sales_alone per_connection many_shards any_units large_stocks opening latency_of_purchases beside_backlog drain; }

# of_size SHORT FULL: the duration or the number for this size of run.
of_size() { if [ "$size" = short ]; then echo "$1"; else echo "$2"; fi; }

prepare() {
  raw=$out/raw
  dir=$(mktemp -d)
  chmod 755 "$dir"
  running=() server='' # processes to end, and the process that is measured
  trap 'stop; stop_postgres; rm -rf "$dir"' EXIT
  pg=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
  mkdir "$dir/pg"
  [ "$(id -u)" != 0 ] || chown postgres "$dir/pg"
  as "$pg/initdb" -U stampede -A trust -D "$dir/pg/data" >/dev/null
  sed 's/^shared_buffers = 2GB/shared_buffers = 512MB/' tuning/postgresql.conf >"$dir/stampede.conf"
}

# --- programs ---

as() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }
start_postgres() {
  ! as "$pg/pg_ctl" -D "$dir/pg/data" status >/dev/null || return 0
  as "$pg/pg_ctl" -D "$dir/pg/data" -o "-c listen_addresses= -k $dir/pg -c config_file=$dir/stampede.conf" -l "$dir/pg/log" -w start >/dev/null
}
# Starts a replica, for which each commit waits from now on.
start_replica() {
  [ "$(id -u)" != 0 ] || install -d -o postgres -m 700 "$dir/replica"
  as "$pg/pg_basebackup" -h "$dir/pg" -U stampede -D "$dir/replica/data" -R -c fast
  as "$pg/pg_ctl" -D "$dir/replica/data" -o "-c listen_addresses= -k $dir/replica -c config_file=$dir/stampede.conf -c hba_file=$dir/pg/data/pg_hba.conf -c ident_file=$dir/pg/data/pg_ident.conf" -l "$dir/replica/log" -w start >/dev/null
  psql -h "$dir/pg" -U stampede -d postgres -Atqc "alter system set synchronous_standby_names = '*'" -c 'select pg_reload_conf()' >/dev/null
}
stop_replica() {
  psql -h "$dir/pg" -U stampede -d postgres -Atqc 'alter system reset synchronous_standby_names' -c 'select pg_reload_conf()' >/dev/null
  as "$pg/pg_ctl" -D "$dir/replica/data" -m immediate stop >/dev/null
  rm -rf "$dir/replica"
}
stop_postgres() {
  local data
  for data in "$dir/replica/data" "$dir/pg/data"; do
    [ ! -e "$data" ] || as "$pg/pg_ctl" -D "$data" -m immediate stop >/dev/null 2>&1 || true
  done
}
sql() { PGOPTIONS="-c search_path=stampede" psql -h "$dir/pg" -U stampede -d "$database" -Atq "$@"; }
# Waits until Postgres has the row of the sale, and one more second.
until_opened() { until [ "$(sql -c 'select count(*) from sales')" = 1 ]; do sleep 0.1; done; sleep 1; }
new_database() {
  database=$1
  psql -h "$dir/pg" -U stampede -d postgres -Atqc "create database $1"
  url="host=$dir/pg user=stampede dbname=$1"
}

# serve DATA ARGUMENTS: starts Stampede on port 8089 or $port, on the CPUs $cpus if set, and waits until it is ready.
serve() { start "$1" --sale-period 365days "${@:2}"; }
# start DATA ARGUMENTS: the same, with sales of an hour or of a plan.
start() {
  ${cpus:+taskset -c "$cpus"} "$bin/stampede" --listen "127.0.0.1:${port:-8089}" --data-dir "$dir/$1" "${@:2}" 2>>"$raw/stampede.log" &
  server=$!
  running+=($server)
  until curl -sf "localhost:${port:-8089}/readyz" >/dev/null; do kill -0 $server; sleep 0.02; done
}
# floor PROGRAM PORT THREADS ARGUMENTS: starts a floor and sets $floor to its process id.
floor() {
  ${cpus:+taskset -c "$cpus"} "$bin/$1" "127.0.0.1:$2" --threads "$3" "${@:4}" & floor=$!
  running+=($floor)
  until curl -s "localhost:$2" >/dev/null; do kill -0 $floor; sleep 0.02; done
}
stop() {
  for process in "${running[@]}"; do
    kill "$process" 2>/dev/null && wait "$process" 2>/dev/null || true
    # After an upgrade, the process is not a child of this shell, so `wait` does not wait for it.
    while runs "$process"; do sleep 0.01; done
  done
  running=()
  cpus=''
}
runs() { grep -qs '^State:.[^Z]' "/proc/$1/status"; }
# storm NAME ARGUMENTS: runs storm, on the CPU $on if set; keeps its report and prints it. Measurements of latency also
# keep a plot.
storm() {
  local name=$1 picture=(); shift
  case $name in *-peak | *-sell) ;; sell-out-* | latency-*) picture=(--svg "$out/plots/$name.svg") ;; esac
  ${on:+taskset -c "$on"} "$bin/storm" "127.0.0.1:${port:-8089}" --sample "${sample:-0}" --json - "${picture[@]}" \
    --unexpected "$raw/$name-unexpected.txt" "$@" 2>>"$raw/storm.log" | tee "$raw/$name.json"
}

# --- numbers ---

cpu_us() { cat "/proc/$1"/task/*/schedstat | awk '{ sum += $1 } END { printf "%.0f", sum / 1000 }'; }
resident_mb() { awk '/VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }
now() { date +%s%N; }
seconds() { calc "($2 - $1) / 1e9"; }
# median_of NUMBER...: prints the median; of an even count, the lower one of the two in the middle.
median_of() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
calc() { awk "BEGIN { printf \"%.3f\", $1 }"; }
# field NAME: the first number with this name in the JSON on standard input. within OBJECT NAME: the same, in an object.
field() { grep -o "\"$1\":[^,}]*" | head -1 | cut -d: -f2; }
within() { grep -o "\"$1\":{[^}]*}" | field "$2"; }

# cost NAME PROCESS CONNECTIONS SCRIPT PORT: prints the process's CPU time for each request of wrk, in microseconds.
cost() {
  local before after
  before=$(cpu_us "$2")
  ${cpus:+taskset -c 1} wrk -t1 -c"$3" -d"${cost_s:-$(of_size 2 10)}"s --latency -s "bench/wrk/$4" "http://127.0.0.1:$5" >"$raw/$1.wrk"
  after=$(cpu_us "$2")
  calc "($after - $before) / $(awk '/requests in/ { print $1 }' "$raw/$1.wrk")"
}

# --- the state machine and recovery, with criterion ---

# bench FILE FILTER
bench() { CRITERION_HOME=$dir/criterion cargo bench --quiet -p bench --bench "$1" -- --quiet "$2" >>"$raw/criterion.txt" 2>&1; }
# median DIRECTORY: prints the median in nanoseconds.
median() {
  sed -E 's/.*"median":\{"confidence_interval":\{[^}]*\},"point_estimate":([0-9.e+]+).*/\1/' "$dir/criterion/$1/new/estimates.json"
}
rules() {
  bench rules "$(of_size 'by items/10000$' .)"
  local kind
  for kind in checkout purchase mixed refusal; do
    case $kind in refusal) limit='≥ 40' ;; mixed) limit='' ;; *) limit='≥ 20' ;; esac
    figure "state machine, one core, 10,000 items: $kind" "$(calc "1e3 / $(median "$kind by items/10000")")" "M/s" "$limit"
  done
  [ "$size" = short ] || for file in mesh log requests copy; do bench $file .; done
}
recovery() {
  bench recovery "$(of_size 'from files/1000000$' .)"
  figure "recovery of 1,000,000 records from files" "$(calc "$(median 'recovery/from files/1000000') / 1e9")" s '≤ 0.5'
}

# --- HTTP, compared with the floors ---

refusals() {
  local shards connections raw_floor own_floor own
  for shards in 1 2; do
    # One shard has one CPU, and wrk the other. Two shards share both CPUs with wrk.
    pinned=''; [ $shards = 2 ] || pinned=0
    cpus=$pinned floor floor 8090 $shards; local raw_process=$floor
    cpus=$pinned floor floor_glommio 8091 $shards; local own_process=$floor
    cpus=$pinned serve "sold-out-$shards" --shards $shards
    storm "sold-out-$shards" --duration 30 >/dev/null
    cpus=$pinned
    for connections in 64 512; do
      local name="$shards-shards-$connections"
      raw_floor=$(cost "floor-$name" $raw_process $connections sold_out.lua 8090)
      own=$(cost "refusal-$name" $server $connections sold_out.lua 8089)
      own_floor=$(cost "floor_glommio-$name" $own_process $connections sold_out.lua 8091)
      local what="sold-out refusal, --shards $shards, $connections connections"
      figure "$what: server CPU" "$own" µs
      figure "$what: raw floor's CPU" "$raw_floor" µs
      figure "$what: over the raw floor" "$(calc "$own / $raw_floor")" × "≤ $([ $shards = 1 ] && echo 1.05 || echo 1.15)"
      figure "$what: over glommio's floor" "$(calc "$own / $own_floor")" ×
    done
    stop
  done
}
# The cost of counting: alternates between this tree, scraped each second, and the same tree with counting compiled out.
counting() {
  local counted uncounted with without round ratios=()
  local other=${CARGO_TARGET_DIR:-target}/uncounted
  CARGO_TARGET_DIR=$other cargo build --release --quiet --features unmetered
  cpus=0 serve counted --shards 1; counted=$server
  storm counted --duration 30 >/dev/null
  cpus=0 port=8092 bin=$other/release serve uncounted --shards 1 --admin-listen 127.0.0.1:8093; uncounted=$server
  port=8092 storm uncounted --duration 30 >/dev/null
  while curl -sf localhost:8081/metrics >/dev/null; do sleep 1; done & local scraper=$!
  # Many short rounds, because the speed of the machine varies within seconds.
  cost_s=2
  for round in $(seq "$(of_size 5 61)"); do
    # Each variant goes first in half of the rounds.
    if ((round % 2)); then
      cpus=0; with=$(cost "counted-$round" $counted 64 sold_out.lua 8089)
      cpus=0; without=$(cost "uncounted-$round" $uncounted 64 sold_out.lua 8092)
    else
      cpus=0; without=$(cost "uncounted-$round" $uncounted 64 sold_out.lua 8092)
      cpus=0; with=$(cost "counted-$round" $counted 64 sold_out.lua 8089)
    fi
    ratios+=("$(calc "$with / $without")")
  done
  stop
  cost_s=''
  wait $scraper || true
  printf '%s\n' "${ratios[@]}" | sort -n >"$raw/counting.txt"
  figure "counting and a scrape each second, over neither: server CPU of a refusal" \
    "$(median_of "${ratios[@]}")" × '≤ 1.03'
}
pairs() {
  local items round request before pairs=() ratios=()
  items=$(of_size 20000 100000)
  for round in $(seq "$(of_size 1 5)"); do
    cpus=0 floor floor 8090 1
    cpus=0; request=$(cost floor-pair "$floor" 256 sold_out.lua 8090)
    cpus=0 serve "pairs-$round" --shards 1 --items "$items" --user-limit 1000000
    before=$(cpu_us "$server")
    on=1 storm pairs --connections 256 --duration 45 >/dev/null
    pairs+=("$(calc "($(cpu_us "$server") - $before) / $(field bought <"$raw/pairs.json")")")
    ratios+=("$(calc "${pairs[-1]} / (2 * $request)")")
    stop
  done
  figure "durable checkout + purchase, 256 connections: server CPU" "$(median_of "${pairs[@]}")" µs
  figure "durable checkout + purchase, 256 connections: over two floor requests" "$(median_of "${ratios[@]}")" × '≤ 1.15'
}

# At half the rate of the closed loop. Latency counts from the time at which the request was due.
latency_of_refusals() {
  local peak
  serve latency-refusal --shards 2
  storm latency-refusal-sell --duration 30 >/dev/null
  peak=$(storm latency-refusal-peak --scenario sold-out --duration "$(of_size 2 10)" | field answers_per_second)
  figure "refusals, closed loop, 64 connections, all on $(nproc) CPUs" "${peak%.*}" 1/s
  storm latency-refusal --scenario sold-out --rate "$(calc "$peak / 2" | cut -d. -f1)" --duration "$(of_size 3 20)" >/dev/null
  stop
  figure "refusal at half the peak rate, open loop: p99" "$(calc "$(within refusal p99_us <"$raw/latency-refusal.json") / 1000")" ms '≤ 1'
}

many_connections() {
  local crowd
  serve talking --shards 2
  storm talking-sell --duration 30 >/dev/null
  storm talking --scenario sold-out --connections 10000 --duration "$(of_size 5 20)" >/dev/null & crowd=$!
  until [ "$(connections)" -ge 10000 ]; do kill -0 $crowd; sleep 0.1; done
  sleep 2
  figure "10,000 connections, all talking: resident" "$(resident_mb "$server")" MB '≤ 60'
  wait $crowd
  stop
  serve idle --shards 2
  storm idle --scenario sold-out --connections 10000 --duration 8 --rate 1 >/dev/null & crowd=$!
  until [ "$(connections)" -ge 10000 ]; do kill -0 $crowd; sleep 0.1; done
  sleep 2
  figure "10,000 connections, idle: resident" "$(resident_mb "$server")" MB '≤ 40'
  wait $crowd
  stop
}
connections() { curl -s localhost:8089/health | grep -o '"connections":[0-9]*' | cut -d: -f2 | paste -sd+ | bc; }

# Hostile clients of every kind beside a good buyer, which has priority on the CPU that they share. The server has the
# other CPU. Latencies count from the time at which a request was due. Then the hostile clients alone, and a server that
# measures its turns by CPU time: on a busy machine the kernel's own threads interrupt turns.
hostile_mix() {
  local crowd run_s buyer=(--rate 200 --connections 16)
  run_s=$(of_size 5 20)
  cpus=0 serve hostile-mix --shards 1 --items 500000 --user-limit 1000000 --log-budget 4GiB
  on=1 storm hostile-alone "${buyer[@]}" --duration "$run_s" >/dev/null
  nice -n 19 taskset -c 1 "$bin/hostile" 127.0.0.1:8089 --duration $((run_s + 20)) >"$raw/hostile.txt" & crowd=$!
  until [ "$(connections)" -ge 16300 ]; do kill -0 $crowd; sleep 0.1; done
  on=1 storm hostile-mix "${buyer[@]}" --seed 2 --others-buy --duration "$run_s" >/dev/null
  curl -s localhost:8081/metrics >"$raw/hostile-metrics.txt"
  wait $crowd
  stop
  local kind of
  for kind in checkout purchase; do
    for of in alone mix; do
      figure "a good buyer's $kind, $([ $of = alone ] && echo alone || echo 'beside hostile clients'): p99" \
        "$(calc "$(within $kind p99_us <"$raw/hostile-$of.json") / 1000")" ms "$([ $of = alone ] || echo '≤ 5')"
    done
  done
  figure "turns over 5 ms beside hostile clients" "$(over_5_ms <"$raw/hostile-metrics.txt")" "" '≤ 0'
  figure "longest turn beside hostile clients" \
    "$(calc "1000 * $(awk '/^stampede_longest_turn_seconds/ { print $2 }' "$raw/hostile-metrics.txt")")" ms
  figure "turns beside hostile clients" "$(awk '/^stampede_turn_seconds_count/ { print $2 }' "$raw/hostile-metrics.txt")" ""
  cargo build --release --workspace --quiet --features turn_cpu_time
  mkdir "$dir/turn-cpu-time"
  cp "$bin/stampede" "$dir/turn-cpu-time"
  cargo build --release --workspace --quiet
  cpus=0 bin=$dir/turn-cpu-time serve hostile-cpu --shards 1 --items 500000 --user-limit 1000000 --log-budget 4GiB
  nice -n 19 taskset -c 1 "$bin/hostile" 127.0.0.1:8089 --duration $((run_s + 10)) >>"$raw/hostile.txt"
  curl -s localhost:8081/metrics >"$raw/hostile-cpu-metrics.txt"
  stop
  figure "turns with hostile clients that took more than 5 ms of CPU time" "$(over_5_ms <"$raw/hostile-cpu-metrics.txt")" "" '≤ 0'
  figure "longest turn with hostile clients, CPU time" \
    "$(calc "1000 * $(awk '/^stampede_longest_turn_seconds/ { print $2 }' "$raw/hostile-cpu-metrics.txt")")" ms
}
# over_5_ms: the number of turns of all shards that took longer than 5 ms, from the text of /metrics.
over_5_ms() { turns 0.005 | awk '{ print $2 - $1 }'; }
# turns SECONDS: the number of turns of all shards that took no longer, and that of all turns, from the text of /metrics.
turns() {
  awk -v le="le=\"$1\"" '/^stampede_turn_seconds_bucket/ && index($0, le) { within += $2 } /^stampede_turn_seconds_count/ { all += $2 } END { print within + 0, all + 0 }'
}

# Twenty upgrades in a row under load. First storm sends requests at half the rate of the closed loop and verifies all
# answers; then wrk mixes purchases and reads. The latencies of storm count from the time at which a request was due,
# those of wrk from the time at which it was sent.
upgrades() {
  local rate crowd stock=(--items 700000 --user-limit 700000 --log-budget 2GiB)
  # The usual sale: sold out, while the clients keep asking.
  serve upgrades-sold-out --shards 2
  storm upgrades-sell --duration 30 >/dev/null
  rate=$(storm upgrades-sold-out-peak --scenario sold-out --duration "$(of_size 2 5)" | field answers_per_second)
  rate=$(calc "$rate / 2" | cut -d. -f1)
  storm upgrades-sold-out --scenario sold-out --rate "$rate" --duration 30 >/dev/null & crowd=$!
  twenty_upgrades $crowd
  figure "20 upgrades, storm, $rate refusals a second: longest wait" "$(calc "$(within refusal max_us <"$raw/upgrades-sold-out.json") / 1000")" ms '≤ 100'
  figure "20 upgrades, storm, refusals: lost or answered by anything else" \
    "$(($(field unexpected <"$raw/upgrades-sold-out.json") + $(field unknown <"$raw/upgrades-sold-out.json")))" "" '≤ 0'
  stop
  # A sale of 700,000 items, whose log the new process must read.
  serve upgrades-peak --shards 2 "${stock[@]}"
  rate=$(storm upgrades-peak --duration "$(of_size 2 5)" | field bought)
  rate=$(calc "$rate / $(of_size 2 5) / 2" | cut -d. -f1)
  stop
  serve upgrades --shards 2 "${stock[@]}"
  sample=1000 storm upgrades --rate "$rate" --duration 45 >/dev/null & crowd=$!
  twenty_upgrades $crowd
  local waits
  waits=$(for kind in checkout purchase; do within $kind max_us <"$raw/upgrades.json"; done | sort -n | tail -1)
  figure "20 upgrades, storm, $rate buyers a second: longest wait" "$(calc "$waits / 1000")" ms '≤ 100'
  # Storm fails, and this run with it, if an answer contradicts the state of the sale.
  figure "20 upgrades, storm, buyers: refused, lost or answered by anything but 200" \
    "$(($(field answers <"$raw/upgrades.json") - $(field reserved <"$raw/upgrades.json") - $(field bought <"$raw/upgrades.json") + $(field unknown <"$raw/upgrades.json")))" "" '≤ 0'
  stop
  serve upgrades-wrk --shards 2
  wrk -t1 -c64 -d60s --latency -s bench/wrk/mixed.lua http://127.0.0.1:8089 >"$raw/upgrades.wrk" & crowd=$!
  twenty_upgrades $crowd
  figure "20 upgrades, wrk, 64 connections, closed loop: longest wait" "$(wrk_ms "$(awk '$1 == "Latency" { print $4 }' "$raw/upgrades.wrk")")" ms
  figure "20 upgrades, wrk: errors of sockets" "$(awk '/Socket errors/ { gsub(",", ""); print $4 + $6 + $8 + $10; none = 1 } END { if (!none) print 0 }' "$raw/upgrades.wrk")" "" '≤ 0'
  figure "20 upgrades: clients paused, by the old process, at most" \
    "$(grep '"handed over' "$raw/stampede.log" | grep -o '"ms":[0-9.]*' | cut -d: -f2 | sort -n | tail -1)" ms
  stop
}
# twenty_upgrades CROWD: upgrades the server while the process CROWD sends requests.
twenty_upgrades() {
  local number
  sleep 1
  for number in {1..20}; do upgrade; done
  kill -0 "$1" # the load lasted through all upgrades
  wait "$1"
}
# Upgrades $server and sets it to the new process. The signal is repeated, because the server refuses an upgrade as long
# as its predecessor has not ended.
upgrade() {
  local begun done
  begun=$(said upgrading) done=$(said "handed over")
  until [ "$(said upgrading)" -gt "$begun" ]; do kill -USR2 "$server"; sleep 0.1; done
  until [ "$(said "handed over")" -gt "$done" ]; do sleep 0.01; done
  server=$(grep '"handed over' "$raw/stampede.log" | tail -1 | grep -o '"pid":[0-9]*' | cut -d: -f2)
  running+=("$server")
  sleep 0.1
}
said() { grep -c "\"$1" "$raw/stampede.log" || true; }
# wrk_ms TIME: converts a time of wrk, such as 1.50ms, 900us or 1.20s, to milliseconds.
wrk_ms() { case $1 in *us) calc "${1%us} / 1000" ;; *ms) echo "${1%ms}" ;; *) calc "${1%s} * 1000" ;; esac; }

# --- with Postgres, all processes on the same CPUs ---

# psql looks for the last row after storm has ended. Starting psql takes time, so the result is an upper bound. On two
# CPUs, one shard fits beside the clients and the database; the results with two shards have no limit.
sell_outs() {
  local shards ack connections report start rows sold limit
  start_postgres
  for shards in 1 2; do
    for ack in local postgres; do
      limit=''; [ $shards = 2 ] || limit="≤ $([ $ack = local ] && echo 0.3 || echo 0.4)"
      for connections in 64 256; do
        new_database "sale_${shards}_${ack}_$connections"
        serve "$database" --shards $shards --ack "$ack" --database-url "$url"
        until_opened
        start=$(now)
        report=$(storm "sell-out-$shards-$ack-$connections" --connections "$connections" --duration 30)
        until [ "$(sql -c 'select count(*) from purchases')" = 10000 ]; do :; done
        rows=$(now)
        sold=$(calc "$(field last_purchase_s <<<"$report")")
        local what="10,000 items sold, --shards $shards, --ack $ack, $connections connections"
        figure "$what: first request to last 200" "$sold" s "$limit"
        figure "$what: last 200 to last row, at most" "$(calc "$(seconds "$start" "$rows") - $sold")" s '≤ 0.2'
        stop
      done
    done
  done
}

# Buyers who choose an item at random until everything is sold, and buyers who take any unit. Between them, what no crowd
# does: each item once.
any_units() {
  local round connections
  for round in $(seq "$(of_size 1 3)"); do
    for connections in 64 256; do
      any_unit 'a random item' random-item --scenario trickle --rate 0
      any_unit 'each item once' item
      any_unit 'any unit' unit --any
    done
  done
}
# any_unit BUYERS NAME ARGUMENTS: sells 10,000 items.
any_unit() {
  local buyers=$1 name=$2-$connections-$round before client report; shift 2
  local what="10,000 items sold by $buyers, 1 shard, $connections connections, round $round"
  serve "sold-$name" --shards 1
  before=$(cpu_us $server)
  storm "sell-out-by-$name" --connections "$connections" --duration 60 "$@" >/dev/null & client=$!
  until [ "$(curl -s localhost:8089/sale | field sold)" = 10000 ]; do sleep 0.1; done
  figure "$what: server CPU per item" "$(calc "($(cpu_us $server) - $before) / 10000")" µs
  # At the signal, storm ends with its report.
  pkill -TERM -P $client -x storm || true
  wait $client
  report=$raw/sell-out-by-$name.json
  figure "$what: first request to last 200" "$(calc "$(field last_purchase_s <"$report")")" s
  figure "$what: refusals" "$(calc "$(field answers <"$report") - $(field reserved <"$report") - $(field bought <"$report")" | cut -d. -f1)" ''
  stop
}

# The hour with large stocks: requests in the minute in which the next sale is prepared and opens, beside those before it.
large_stocks() {
  local round
  for round in $(seq "$(of_size 1 2)"); do
    the_hour 10000 1
    the_hour 1000000 1
    the_hour 1000000 1000
    the_hour 10000000 1
  done
}
# the_hour ITEMS PRODUCTS: two sales of 60 s. The second one is prepared 30 s before it opens.
the_hour() {
  local opens sale product before longest name=hour-$1-$2-$round plan=$dir/hour.toml
  local what="$1 items in $2 product(s), 1 shard, round $round"
  opens=$(($(date +%s) + 50))
  for sale in 1 2; do
    printf '[[sale]]\nid = %s\nname = "S"\nuser_limit = 10\n' $sale
    printf 'opens = %s\ncloses = %s\n' "$(utc $((opens + (sale - 2) * 60)))" "$(utc $((opens + (sale - 1) * 60)))"
    for product in $(seq "$2"); do
      printf '[[sale.product]]\nid = "p%s"\nname = "P"\nquantity = %s\n' "$product" $(($1 / $2))
    done
  done >"$plan"
  cpus=0 start "$name" --plan "$plan" --shards 1 --admin-listen 127.0.0.1:8093
  before=$(resident_mb $server)
  figure "$what: resident memory" "$before" MB
  longest=$(longest_wait "$name-before" $((opens - 32)))
  figure "$what: longest wait before the next sale is prepared" "$longest" ms
  longest=$(longest_wait "$name" $((opens + 4)))
  figure "$what: longest wait while it is prepared and opens" "$longest" ms '≤ 2'
  [ "$(curl -s localhost:8089/sale | field sale_id)" = 2 ]
  figure "$what: memory with the next sale, relative" "$(calc "$(resident_mb $server) / $before")" × '≤ 1.1'
  figure "$what: longest turn" \
    "$(calc "1e3 * $(curl -s localhost:8093/metrics | awk '/^stampede_longest_turn_seconds/ { print $2; exit }')")" ms
  stop
}
# longest_wait NAME UNTIL: the longest of the requests of 16 connections, in milliseconds.
longest_wait() {
  taskset -c 1 wrk -t1 -c16 -d$(($2 - $(date +%s)))s --latency http://127.0.0.1:8089/sale >"$raw/$1.wrk"
  awk '$1 == "Latency" { ms = $4 ~ /us$/ ? $4 / 1000 : $4 ~ /ms$/ ? $4 + 0 : $4 * 1000; print ms; exit }' "$raw/$1.wrk"
}
utc() { date -u -d "@$1" +%FT%TZ; }

# A sale of 2,000 units for which 5,000 connections wait. storm sends a checkout each 100 µs, from 5 ms before the opening
# until the first 200, and then the checkouts of all others at once.
opening() {
  local rounds round opens early=0 unexpected=0 plan=$dir/opening.toml what='opening under 5,000 waiting connections'
  rounds=$(of_size 2 5)
  for round in $(seq "$rounds"); do
    opens=$(($(date +%s) + 12))
    printf '[[sale]]\nid = 1\nname = "S"\nopens = %s\ncloses = %s\nuser_limit = 1\n' "$(utc $opens)" "$(utc $((opens + 10)))" >"$plan"
    printf '[[sale.product]]\nid = "p"\nname = "P"\nquantity = 2000\n' >>"$plan"
    cpus=0 start "opening-$round" --plan "$plan" --shards 1
    on=1 storm "opening-$round" --scenario opening --connections 5000 >/dev/null
    stop
    early=$((early + $(field served_before <"$raw/opening-$round.json")))
    unexpected=$((unexpected + $(field unexpected <"$raw/opening-$round.json")))
  done
  figure "$what: served before it, $rounds rounds" $early "" '≤ 0'
  figure "$what: unexpected answers, and lost ones" $unexpected "" '≤ 0'
  figure "$what: opening to the first 200" "$(median_ms opening first_200_us)" ms '≤ 2'
  figure "$what: opening to the 100th 200" "$(median_ms opening hundredth_200_us)" ms
  figure "$what: opening to the last of 2,000 units" "$(median_ms opening last_200_us)" ms
  figure "$what: longest time without a checkout until the first 200" "$(median_ms opening longest_gap_us)" ms
}
# median_ms NAME FIELD: the median of a time in microseconds over the rounds of a run of storm, in milliseconds. The higher one
# of two.
median_ms() {
  local round
  calc "$(for round in "$raw/$1"-[0-9].json; do field "$2" <"$round"; done | sort -n | awk '{ of[NR] = $1 } END { print of[int(NR / 2) + 1] }') / 1000"
}

# With a stock that is larger than the number of purchases in the run.
latency_of_purchases() {
  local ack report
  start_postgres
  for ack in local postgres replicated; do
    [ $ack != replicated ] || start_replica
    for step in peak half; do
      new_database "latency_${ack}_$step"
      serve "$database" --shards 2 --ack "$ack" --items 500000 --user-limit 1000000 --database-url "$url"
      until_opened
      if [ $step = peak ]; then
        report=$(storm "latency-$ack-peak" --duration "$(of_size 2 5)")
        local rate; rate=$(calc "$(field bought <<<"$report") / $(field seconds <<<"$report") / 2" | cut -d. -f1)
        figure "durable purchases, --ack $ack, peak rate" "$((2 * rate))" /s
      else
        report=$(storm "latency-$ack" --rate "$rate" --duration "$(of_size 3 20)")
        figure "durable purchase, --ack $ack, half the peak rate, open loop: p99" \
          "$(calc "$(within purchase p99_us <<<"$report") / 1000")" ms "$([ $ack = replicated ] || echo "≤ $([ $ack = local ] && echo 3 || echo 10)")"
      fi
      stop
    done
  done
  stop_replica
}

# Purchases with --ack postgres, at half of their peak rate, while refused checkouts that were recorded without a database
# are sent.
beside_backlog() {
  local stock=(--shards 2 --items 500000 --user-limit 1000000 --log-budget 4GiB) report rate left
  start_postgres
  new_database beside_backlog_peak
  serve beside-backlog-peak "${stock[@]}" --ack postgres --database-url "$url"
  until_opened
  report=$(storm beside-backlog-peak --duration "$(of_size 2 5)")
  rate=$(calc "$(field bought <<<"$report") / $(field seconds <<<"$report") / 2" | cut -d. -f1)
  stop
  serve beside-backlog "${stock[@]}"
  curl -sf -X POST 'localhost:8089/checkout?user_id=1&item_id=0' >/dev/null
  until [ "$(attempts_durable)" -ge "$(of_size 6000000 10000000)" ]; do
    ITEMS=1 wrk -t1 -c64 -d1s -s bench/wrk/sold_out.lua http://127.0.0.1:8089 >/dev/null
  done
  stop
  new_database beside_backlog
  serve beside-backlog "${stock[@]}" --ack postgres --database-url "$url"
  until_opened
  report=$(storm beside-backlog --rate "$rate" --duration "$(of_size 2 5)")
  left=$(curl -s localhost:8089/readyz | grep -o '"records_behind":[0-9]*' | cut -d: -f2)
  figure "durable purchase, --ack postgres, half the peak rate, beside a backlog: p99" \
    "$(calc "$(within purchase p99_us <<<"$report") / 1000")" ms
  figure "records of the backlog that were left at the end" "$left" "" '≥ 1'
  stop
}
attempts_durable() {
  curl -s localhost:8089/health | grep -o '"attempts_durable":[0-9]*' | cut -d: -f2 | paste -sd+ | bc
}

# A backlog of refused attempts that were recorded without a database, compared with psql's COPY of the same rows into
# the same table. A first drain, which is not measured, leaves Postgres with WAL files that the others use again.
drain() {
  local attempts from drained partition rows copied
  attempts=$(of_size 500000 3000000)
  serve backlog --shards 2 --items 100 --user-limit 1000000 --log-budget 4GiB
  storm backlog-sell --duration 5 >/dev/null
  until [ "$(attempts_durable)" -ge "$attempts" ]; do
    storm backlog --scenario sold-out --duration 2 >/dev/null
  done
  stop
  start_postgres
  cp -a "$dir/backlog" "$dir/first"
  new_database first
  serve first --shards 2 --items 100 --user-limit 1000000 --log-budget 4GiB --database-url "$url"
  until curl -s localhost:8089/readyz | grep -q '"connected":true,"records_behind":0'; do sleep 0.1; done
  stop
  sql -c checkpoint
  new_database backlog
  from=$(now)
  serve backlog --shards 2 --items 100 --user-limit 1000000 --log-budget 4GiB --database-url "$url"
  until curl -s localhost:8089/readyz | grep -q '"connected":true,"records_behind":0'; do sleep 0.01; done
  drained=$(seconds "$from" "$(now)")
  stop
  partition=$(sql -c "select 'checkouts_' || max(sale_id) || '_refused' from sales")
  rows=$(sql -c "select count(*) from $partition")
  sql -c "\\copy $partition to '$dir/rows' with (format binary)"
  sql -c "truncate $partition"
  from=$(now)
  sql -c "\\copy checkouts from '$dir/rows' with (format binary)"
  copied=$(seconds "$from" "$(now)")
  figure "drain of refused attempts, start-up included" "$(calc "$rows / $drained / 1e6")" "M rows/s"
  figure "psql, one COPY of the same rows into the same table" "$(calc "$rows / $copied / 1e6")" "M rows/s"
  figure "drain: of psql's rate" "$(calc "100 * $copied / $drained")" % '≥ 85'
}
