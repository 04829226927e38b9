# Measurements of bench/run that compare a durable answer with the disk, and many shards with one. The functions that they
# use are in suite.sh.

# mean_flush: the mean duration of a flush of the purchase log in microseconds, from the text of /metrics.
mean_flush() {
  awk '/^stampede_log_flush_seconds_sum\{log="purchases"/ { sum += $2 } /^stampede_log_flush_seconds_count\{log="purchases"/ { count += $2 } END { printf "%.3f", 1e6 * sum / count }'
}
# raw_writes NAME: writes blocks as the log does, on the first CPU, and keeps the report.
raw_writes() {
  mkdir -p "$dir/raw-writes"
  rm -f "$dir/raw-writes"/*
  taskset -c 0 "$bin/raw_writes" "$dir/raw-writes" --count "$(of_size 3000 10000)" >"$raw/raw-writes-$1.json"
}

# One buyer on one connection, beside the sum of one write to the disk and one refusal.
durable_latency() {
  local round write refusal name checkouts=() ratios=()
  for round in $(seq "$(of_size 1 5)"); do
    name=one-buyer-$round
    cpus=0 serve "$name" --shards 1 --items 3000
    raw_writes "$round"
    on=1 storm "$name" --connections 1 --duration 30 >/dev/null
    on=1 storm "$name-refused" --connections 1 --scenario sold-out --duration 2 >/dev/null
    stop
    write=$(field p50_us <"$raw/raw-writes-$round.json")
    refusal=$(within refusal p50_us <"$raw/$name-refused.json")
    checkouts+=("$(within checkout p50_us <"$raw/$name.json")")
    ratios+=("$(calc "${checkouts[-1]} / ($write + $refusal)")")
  done
  figure "durable checkout, one connection: p50" "$(median_of "${checkouts[@]}")" µs
  figure "durable checkout, one connection: over one synced write and a refusal, p50 of each" "$(median_of "${ratios[@]}")" × '≤ 1.3'
}

# Whole sales without Postgres, and the flushes in them beside the disk's own write.
sales_alone() {
  local round shards connections name write times flushes alone
  for connections in 64 256; do
    alone=''
    for shards in 1 2; do
      times=() flushes=()
      for round in $(seq "$(of_size 1 5)"); do
        name=sell-out-alone-$shards-$connections-$round
        serve "$name" --shards $shards
        raw_writes "$shards-$connections-$round"
        storm "$name" --connections $connections --duration 30 >/dev/null
        curl -s localhost:8081/metrics >"$raw/$name.metrics"
        stop
        times+=("$(field last_purchase_s <"$raw/$name.json")")
        write=$(field mean_us <"$raw/raw-writes-$shards-$connections-$round.json")
        flushes+=("$(calc "$(mean_flush <"$raw/$name.metrics") / $write")")
      done
      local what="10,000 items sold without Postgres, --shards $shards, $connections connections"
      figure "$what: first request to last 200" "$(calc "$(median_of "${times[@]}")")" s "$([ $shards = 2 ] || echo '≤ 0.25')"
      [ -z "$alone" ] || figure "$what: over 1 shard" "$(calc "$(median_of "${times[@]}") / $alone")" × '≤ 1.2'
      [ -n "$alone" ] || alone=$(median_of "${times[@]}")
      figure "$what: mean flush over one synced write" "$(median_of "${flushes[@]}")" × "$([ $shards-$connections != 1-64 ] || echo '≤ 2')"
      figure "$what: turns of at most 1 ms" "$(turns 0.001 <"$raw/$name.metrics" | awk '{ printf "%.2f", 100 * $1 / $2 }')" %
    done
  done
}

# ab opens a connection for each request. The floor accepts, reads, answers and closes.
per_connection() {
  local round own other ratios=() costs=()
  cpus=0 serve per-connection --shards 1
  local own_process=$server
  cpus=0 floor floor 8090 1 --close; local raw_process=$floor
  storm per-connection --duration 30 >/dev/null
  for round in $(seq "$(of_size 3 9)"); do
    own=$(cost_of_connections "$own_process" 8089)
    other=$(cost_of_connections "$raw_process" 8090)
    costs+=("$own") ratios+=("$(calc "$own / $other")")
  done
  stop
  figure "a connection for each refusal, 64 at once, 1 shard: server CPU" "$(median_of "${costs[@]}")" µs
  figure "a connection for each refusal, 64 at once, 1 shard: over a raw server that closes" "$(median_of "${ratios[@]}")" × '≤ 1.10'
}
# cost_of_connections PROCESS PORT: the process's CPU time for each of ab's requests, in microseconds.
cost_of_connections() {
  local before
  before=$(cpu_us "$1")
  taskset -c 1 ab -q -n 30000 -c 64 -m POST "http://127.0.0.1:$2/checkout?user_id=1&item_id=5" >"$raw/ab-$2.txt"
  calc "($(cpu_us "$1") - $before) / 30000"
}

# Shards that share one CPU, in turn with one shard.
many_shards() {
  local shards connections idle before one=()
  for shards in 1 2 4 16 64; do
    cpus=0 serve "shards-$shards" --shards $shards
    sleep 1
    before=$(cpu_us "$server")
    sleep "$(of_size 2 10)"
    idle=$(calc "($(cpu_us "$server") - $before) / $(of_size 2 10) / 1e4")
    figure "$shards shards on one CPU, idle: CPU" "$idle" % "$([ $shards != 64 ] || echo '≤ 0.2')"
    figure "$shards shards on one CPU, idle: resident" "$(resident_mb "$server")" MB "$([ $shards != 64 ] || echo '≤ 40')"
    before=$(cpu_us "$server")
    on=1 storm "shards-$shards" --connections 256 --duration 30 >/dev/null
    figure "$shards shards on one CPU: server CPU per item sold" "$(calc "($(cpu_us "$server") - $before) / 10000")" µs
    for connections in 64 512; do
      cpus=0
      one[connections]=${one[connections]:-$(cost "shards-$shards-$connections" $server $connections sold_out.lua 8089)}
      [ $shards = 1 ] || figure "$shards shards on one CPU, $connections connections: CPU of a refusal, over 1 shard" \
        "$(calc "$(cost "shards-$shards-$connections" $server $connections sold_out.lua 8089) / ${one[connections]}")" × "$([ $shards != 64 ] || echo '≤ 1.3')"
    done
    stop
  done
}
