# frozen_string_literal: true

# A client of Remit in Ruby, made from the contracts alone. It starts a run, follows it to its end
# over two streams and prints what it saw, a JSON object a line.

require 'json'
require 'securerandom'
require 'google/protobuf/well_known_types'
require 'google/rpc/error_details_pb'
require 'google/rpc/status_pb'
require 'remit/api/agent/v1/agent_service_services_pb'

AgentV1 = Remit::Api::Agent::V1

PAUSE_S = 0.2

# [follow begins]
# Gives every event after a sequence to the block, to the end of the run; returns the run.
# A stream that breaks is resumed until the deadline.
def follow(agents, name, after, **options)
  loop do
    request = AgentV1::WatchRunRequest.new(name: name, after_sequence: after)
    stream = agents.watch_run(request, return_op: true, **options)
    begin
      stream.execute.each do |response|
        event = response.event or next # a heartbeat has none
        after = event.sequence
        yield event
        return event.ended.run if event.ended
      end
      # Over without an error: the run ended at this sequence.
      return agents.get_run(AgentV1::GetRunRequest.new(name: name), **options).run
    rescue GRPC::Unavailable, GRPC::Internal
      sleep PAUSE_S
    ensure
      stream.cancel # ends a stream that we leave early
    end
  end
end
# [follow ends]

# [errors begins]
# The canonical code of an error and Remit's reason for it.
def explain(error)
  details = error.to_rpc_status&.details.to_a
  info = details.filter_map { |detail| detail.unpack(Google::Rpc::ErrorInfo) }.first
  [Google::Rpc::Code.lookup(error.code), info&.reason]
end
# [errors ends]

def show(**line)
  puts JSON.generate(line)
end

def show_event(event)
  show(sequence: event.sequence, event: event.event)
end

$stdout.sync = true

# [start begins]
agents = AgentV1::AgentService::Stub.new(ENV.fetch('REMIT_ADDRESS'), :this_channel_is_insecure)
options = {
  metadata: { 'authorization' => "Bearer #{ENV.fetch('REMIT_API_KEY')}" },
  deadline: Time.now + 60 # of all that follows
}
request = AgentV1::CreateRunRequest.new(
  agent: 'agents/assistant',
  task: 'What is 17 * 23?',
  request_id: SecureRandom.uuid # keep it: whoever sends it again gets the same run
)
run = agents.create_run(request, **options).run
# [start ends]
show(run: run.name)
show(again: agents.create_run(request, **options).run.name)

# The first stream is broken off on purpose after its second event; the second goes on there.
seen = 0
follow(agents, run.name, seen, **options) do |event|
  seen = event.sequence
  show_event(event)
  break if seen == 2
end
show(resumed_after: seen)
ended = follow(agents, run.name, seen, **options) do |event|
  seen = event.sequence
  show_event(event)
end
show(answer: ended.result)

# Behind the last event there is none: the stream ends, and the run says how it ended.
behind = 0
ended = follow(agents, run.name, seen, **options) { behind += 1 }
show(behind: behind, answer_behind: ended.result)

begin
  unknown = AgentV1::GetRunRequest.new(name: 'runs/00000000-0000-7000-8000-000000000000')
  agents.get_run(unknown, **options)
rescue GRPC::BadStatus => e
  code, reason = explain(e)
  show(code: code)
  show(reason: reason)
end
