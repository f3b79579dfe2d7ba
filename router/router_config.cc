#include "router/router_config.h"

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/status.h"

namespace baton::router {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr absl::Duration kTick = absl::Milliseconds(1);
constexpr absl::Duration kLong = absl::Hours(24);

void BindHttp(ConfigReader& reader, RouterConfig& c) {
  reader.Bind("http.host", &c.endpoint.host, "numeric address to listen on");
  reader.Bind("http.port", &c.endpoint.port, 0, 65535, "0: any");
  reader.Bind("http.tls_certificate_file", &c.endpoint.tls_certificate_file,
              "PEM: the certificate, then those above it; with the key: HTTPS; empty: plain HTTP");
  reader.Bind("http.tls_key_file", &c.endpoint.tls_key_file, "PEM: its private key");
  reader.Bind(
      "http.api_keys_file", &c.api_keys_file,
      "lines `NAME KEY [requests_per_minute=N] [tokens_per_minute=N] [admin]`, KEY in plain "
      "or sha256:HEX; empty: no key is asked for");
  reader.Bind("http.cors_origins", &c.cors_origins,
              "origins of web pages that may call, such as https://chat.example; *: all; empty: "
              "none");
  reader.Bind("http.threads", &c.http.threads, 1, 256, "threads that own connections");
  reader.Bind(
      "http.max_connections", &c.http.max_connections, 1, 1 << 20,
      "open at once; more are closed at once; the default is lowered to what `ulimit -Hn` allows");
  reader.Bind("http.max_header_bytes", &c.http.max_header_bytes, 1024, 1 << 20,
              "of one request's head: above it 431");
  reader.Bind("http.max_body_bytes", &c.http.max_body_bytes, 1024, kGiB,
              "of one body: above it 413");
  reader.Bind("http.max_bodies_bytes", &c.http.max_bodies_bytes, 1024, 64 * kGiB,
              "of all bodies that are read or handled, and large answers: above it 429");
  reader.Bind(
      "http.max_backlog_bytes", &c.http.max_backlog_bytes, 1024, kGiB,
      "unsent bytes of one answer: a reader this slow counts as gone. Pieces of more than an "
      "eighth of it (the last events of a long answer of `/v1/responses` repeat its text) "
      "count as large answers instead, of which 16 times as much may wait");
  reader.BindMs("http.header_timeout_ms", &c.http.header_timeout, kTick, kLong,
                "from the first byte to the end of the head");
  reader.BindMs("http.body_timeout_ms", &c.http.body_timeout, kTick, kLong,
                "without a byte of the body");
  reader.BindMs("http.idle_timeout_ms", &c.http.idle_timeout, kTick, kLong,
                "of a connection that is kept alive");
  reader.BindMs("http.write_timeout_ms", &c.http.write_timeout, kTick, kLong,
                "without a byte taken by the client");
  reader.Bind("http.cpu_threads", &c.cpu_threads, 1, 256,
              "threads that read bodies above api.offload_bytes");
  reader.Bind("http.max_waiting_bodies", &c.max_waiting_bodies, 1, 1 << 20,
              "waiting for those threads, and grammars for theirs: above it 429");
  reader.Bind("http.grammar_threads", &c.grammar_threads, 1, 256,
              "threads that compile grammars: so many slow ones at once hold up the others");
}

void BindSessions(ConfigReader& reader, RouterConfig& c) {
  reader.BindMs("sessions.beat_interval_ms", &c.sessions.beat_interval, kTick, absl::Seconds(60),
                "between beats");
  reader.BindMs("sessions.silence_ms", &c.sessions.silence, kTick, absl::Hours(1),
                "of a worker: then its session is dead");
  reader.BindMs("sessions.reconnect_interval_ms", &c.sessions.reconnect_interval, kTick,
                absl::Hours(1), "between attempts to connect");
  reader.BindMs("sessions.resolve_interval_ms", &c.sessions.resolve_interval, kTick, kLong,
                "between look-ups of dns: names");
  reader.Bind("sessions.max_outbox_messages", &c.sessions.max_outbox_messages, 16, 1 << 24,
              "waiting for one worker: above it the session ends");
  reader.Bind("planner.max_inputs", &c.planner.max_inputs, 16, 1 << 24,
              "events waiting for the planner thread");
  reader.Bind("planner.max_batch", &c.planner.max_batch, 1, 1 << 20, "events taken per turn");
}

void BindPlan(ConfigReader& reader, PlanConfig& plan) {
  reader.Bind("plan.max_queued_requests", &plan.max_queued_requests, 1, 1 << 24, "above it 429");
  reader.Bind("plan.max_queued_tokens", &plan.max_queued_tokens, 1, uint64_t{1} << 40,
              "prompt tokens that wait: above it 429");
  reader.Bind("plan.max_live_bytes", &plan.max_live_bytes, 1 << 16, 1024 * kGiB,
              "token ids and prompt logprobs of all live requests: above it 429");
  reader.BindMs("plan.min_retry_after_ms", &plan.min_retry_after, kTick, kLong,
                "least Retry-After");
  reader.BindMs("plan.max_retry_after_ms", &plan.max_retry_after, kTick, kLong, "most Retry-After");
  reader.BindMs("plan.no_worker_grace_ms", &plan.no_worker_grace, absl::ZeroDuration(), kLong,
                "waited for a worker before 503");
  reader.BindMs("plan.recovery_wait_ms", &plan.recovery_wait, kTick, kLong,
                "from a worker's loss to the next token");
  reader.Bind("plan.max_attempts", &plan.max_attempts, 1, 100,
              "placements since the last new token");
  reader.Bind("plan.max_lost_bookings", &plan.max_lost_bookings, 0, 1000,
              "decode workers lost under a request before its first token; one more: 503");
  reader.Bind("plan.max_moves_per_worker", &plan.max_moves_per_worker, 0, 1 << 16,
              "sequences that leave a draining worker at once; 0: they finish in place");
  reader.BindMs("plan.answer_timeout_ms", &plan.answer_timeout, kTick, kLong,
                "for a worker's answer to a booking");
  reader.BindMs("plan.progress_floor_ms", &plan.progress_floor, kTick, kLong,
                "least time allowed without progress");
  reader.Bind("plan.progress_factor", &plan.progress_factor, 1, 1000,
              "times the predicted chunk, without progress");
  reader.Bind("plan.chunk_tokens", &plan.chunk_tokens, 1, 1 << 20,
              "prompt tokens of a predicted chunk");
  reader.BindMs("plan.max_parked_ms", &plan.max_parked, kTick, kLong,
                "parked at a worker, then moved");
  reader.BindMs("plan.max_wedged_ms", &plan.max_wedged, kTick, kLong,
                "a worker's engine stuck, then its work moves");
  reader.BindMs("plan.suspect_after_ms", &plan.suspect_after, kTick, kLong,
                "of silence: no new work goes there");
  reader.BindMs("plan.min_backoff_ms", &plan.min_backoff, kTick, kLong, "after a worker's refusal");
  reader.Bind("plan.max_prefills_per_worker", &plan.max_prefills_per_worker, 1, 1024,
              "given to a prefill worker at once");
  reader.BindMs("plan.max_worker_queue_ms", &plan.max_worker_queue, kTick, kLong,
                "of prompt tokens queued at a worker");
  reader.Bind("plan.assumed_prefill_tokens_per_s", &plan.assumed_prefill_tokens_per_s, 1, 1e9,
              "until a worker has measured");
  reader.Bind("plan.prefill_on_decode_max_tokens", &plan.prefill_on_decode_max_tokens, 0, 1 << 24,
              "uncached tokens up to which a decode worker prefills; 0: never");
  reader.Bind("plan.headroom_tokens", &plan.headroom_tokens, 0, 1 << 24,
              "booked per sequence beyond its prompt, at most");
  reader.Bind("plan.nominal_step_us", &plan.nominal_step_us, 1, 1e9, "of an idle decode worker");
  reader.BindMs("plan.view_interval_ms", &plan.view_interval, kTick, absl::Seconds(60),
                "between published views");
}

void BindApi(ConfigReader& reader, RouterConfig& c) {
  reader.Bind("api.max_context", &c.api.max_context, 0, 1 << 20,
              "tokens of prompt and answer; 0: the model's; the workers' limits lower it");
  reader.Bind("api.default_max_tokens", &c.api.default_max_tokens, 0, 1 << 20,
              "of an answer whose request names no limit; 0: what the context leaves");
  reader.BindMs("api.request_deadline_ms", &c.api.request_deadline, kTick, kLong,
                "arrival to first token");
  reader.BindMs("api.ping_interval_ms", &c.api.ping_interval, absl::Milliseconds(100), kLong,
                "between comments of a silent stream");
  reader.Bind("api.offload_bytes", &c.api.offload_bytes, 0, kGiB,
              "larger bodies are read off the connections' threads");
  reader.BindChoice("api.effort_profile", &c.effort_profile, {"auto", "preview", "0731"},
                    "effort texts of the checkpoint; auto: by config.json");
  reader.Bind("api.default_thinking", &c.api.chat.is_thinking,
              "whether a chat thinks that does not say");
  reader.Bind("api.inject_response_format", &c.api.chat.inject_response_format,
              "put the response format into the prompt");
  reader.Bind("api.enable_admin", &c.serves_admin,
              "serve operators' paths to every client; false: to keys marked admin only");
  reader.Bind("api.honour_thinking_budget", &c.api.honours_thinking_budget,
              "a thinking budget ends the reasoning; false: it is accepted and ignored");
  reader.Bind("api.max_replay_bytes", &c.api.replay.max_bytes, 0, 64 * kGiB,
              "of sampled tool calls kept, so that the next turn finds their cached pages");
  reader.BindMs("api.max_replay_age_ms", &c.api.replay.max_age, kTick, kLong,
                "since a sampled tool call was kept");
  reader.Bind("api.reasoning_secret_file", &c.reasoning_secret_file,
              "32 bytes or more, the same for all replicas: seals the reasoning that clients of "
              "/v1/responses hand back; empty: drawn at start");
  reader.Bind("api.native_developer_role", &c.api.chat.is_developer_native,
              "a developer message is a user turn, not a system message");
}

}  // namespace

void BindConfig(ConfigReader& reader, RouterConfig& c) {
  reader.Bind("model", &c.model,
              "folder of the checkpoint: config.json and tokenizer.json are read");
  reader.Bind("workers", &c.workers,
              "session addresses: host:port, or dns:host:port for all addresses of a name");
  reader.Bind("served_names", &c.names, "what clients call the model; empty: the folder's name");
  reader.Bind("log_level", &c.log_level, "debug, info, warn or error");
  reader.Bind("router_id", &c.router_id, "name in hellos and logs");
  reader.BindMs("drain_timeout_ms", &c.drain_timeout, absl::ZeroDuration(), absl::Hours(1),
                "after SIGTERM, for what is open");
  BindHttp(reader, c);
  BindSessions(reader, c);
  BindPlan(reader, c.plan);
  BindApi(reader, c);
}

absl::Status Validate(const RouterConfig& config) {
  if (config.model.empty())
    return absl::InvalidArgumentError("model is empty: which folder holds the checkpoint?");
  if (config.workers.empty())
    return absl::InvalidArgumentError("workers is empty: where are the sessions?");
  LogLevel level = LogLevel::kInfo;
  if (!ParseLogLevel(config.log_level, level))
    return absl::InvalidArgumentError(
        absl::StrFormat("log_level is '%s': debug, info, warn or error", config.log_level));
  if (config.sessions.silence <= config.sessions.beat_interval)
    return absl::InvalidArgumentError(
        absl::StrFormat("sessions.silence_ms is %d, it must be above sessions.beat_interval_ms %d",
                        absl::ToInt64Milliseconds(config.sessions.silence),
                        absl::ToInt64Milliseconds(config.sessions.beat_interval)));
  if (config.endpoint.tls_certificate_file.empty() != config.endpoint.tls_key_file.empty())
    return absl::InvalidArgumentError(absl::StrFormat(
        "http.tls_certificate_file is '%s' and http.tls_key_file '%s': both or none",
        config.endpoint.tls_certificate_file, config.endpoint.tls_key_file));
  return config.plan.Validate();
}

}  // namespace baton::router
