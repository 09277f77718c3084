// A client of Remit in C++, made from the contracts alone. It starts a run, follows it to its end
// over two streams and prints what it saw, a JSON object a line.

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/rpc/code.pb.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "remit/api/agent/v1/agent_service.grpc.pb.h"

namespace {

using namespace remit::api::agent::v1;
using Agents = AgentService::Stub;
using Deadline = std::chrono::system_clock::time_point;

constexpr auto kPause = std::chrono::milliseconds(200);

std::string Setting(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) throw std::runtime_error(std::string(name) + " is not set");
  return value;
}

// [context begins]
// Every call has a context of its own, with the key and the time by which it must have ended.
std::unique_ptr<grpc::ClientContext> NewContext(Deadline deadline) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->AddMetadata("authorization", "Bearer " + Setting("REMIT_API_KEY"));
  context->set_deadline(deadline);
  return context;
}
// [context ends]

// [follow begins]
// Gives every event after a sequence to `each`, until that returns false or the run has ended; then
// fills `run`. A stream that breaks is resumed until the deadline.
grpc::Status Follow(Agents& agents, const std::string& name, int64_t after, Deadline deadline,
                    const std::function<bool(const RunEvent&)>& each, Run& run) {
  WatchRunRequest request;
  request.set_name(name);
  while (true) {
    auto context = NewContext(deadline);
    request.set_after_sequence(after);
    auto stream = agents.WatchRun(context.get(), request);
    for (WatchRunResponse response; stream->Read(&response);) {
      if (!response.has_event()) continue;  // a heartbeat
      const RunEvent& event = response.event();
      after = event.sequence();
      if (event.has_ended()) run = event.ended().run();
      if (!each(event) || event.has_ended()) {
        context->TryCancel();  // ends a stream that we leave early
        stream->Finish();
        return grpc::Status::OK;
      }
    }
    const grpc::Status end = stream->Finish();
    if (end.ok()) {  // over without an error: the run ended at this sequence
      GetRunRequest asked;
      asked.set_name(name);
      GetRunResponse answer;
      const grpc::Status status = agents.GetRun(NewContext(deadline).get(), asked, &answer);
      run = answer.run();
      return status;
    }
    const bool broke = end.error_code() == grpc::UNAVAILABLE || end.error_code() == grpc::INTERNAL;
    if (!broke) return end;
    std::this_thread::sleep_for(kPause);
  }
}
// [follow ends]

// [errors begins]
// What an error says: its canonical code and Remit's reason for it.
struct Explanation {
  std::string code;
  std::string reason;
};

Explanation Explain(const grpc::Status& status) {
  google::rpc::Status answer;
  answer.ParseFromString(status.error_details());
  google::rpc::ErrorInfo info;
  for (const auto& detail : answer.details()) {
    if (detail.Is<google::rpc::ErrorInfo>()) detail.UnpackTo(&info);
  }
  return {google::rpc::Code_Name(google::rpc::Code(status.error_code())), info.reason()};
}
// [errors ends]

std::string NewId() {
  std::random_device random;
  std::ostringstream id;
  for (int i = 0; i < 4; ++i) id << std::hex << random();
  return id.str();
}

std::string Json(const std::string& text) {
  google::protobuf::Value value;
  value.set_string_value(text);
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(value, &json);
  if (!status.ok()) throw std::runtime_error(status.ToString());
  return json;
}

void Show(const std::string& key, const std::string& value) {
  std::cout << "{" << Json(key) << ":" << Json(value) << "}" << std::endl;
}

void ShowEvent(const RunEvent& event) {
  const auto* oneof = RunEvent::descriptor()->FindOneofByName("event");
  const auto* chosen = RunEvent::GetReflection()->GetOneofFieldDescriptor(event, oneof);
  std::cout << "{\"sequence\":" << event.sequence() << ",\"event\":" << Json(chosen->name()) << "}"
            << std::endl;
}

void Check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(Explain(status).code + ": " + status.error_message());
}

void RunAgent() {
  // [start begins]
  auto channel = grpc::CreateChannel(Setting("REMIT_ADDRESS"), grpc::InsecureChannelCredentials());
  auto agents = AgentService::NewStub(channel);
  const Deadline deadline = std::chrono::system_clock::now() + std::chrono::minutes(1);

  CreateRunRequest request;
  request.set_agent("agents/assistant");
  request.set_task("What is 17 * 23?");
  request.set_request_id(NewId());  // keep it: whoever sends it again gets the same run
  CreateRunResponse created;
  const grpc::Status status = agents->CreateRun(NewContext(deadline).get(), request, &created);
  // [start ends]
  Check(status);
  const std::string name = created.run().name();
  Show("run", name);

  CreateRunResponse again;
  Check(agents->CreateRun(NewContext(deadline).get(), request, &again));
  Show("again", again.run().name());

  // The first stream is broken off on purpose after its second event; the second goes on there.
  int64_t seen = 0;
  Run ended;
  const auto two = [&seen](const RunEvent& event) {
    seen = event.sequence();
    ShowEvent(event);
    return seen < 2;
  };
  const auto all = [&seen](const RunEvent& event) {
    seen = event.sequence();
    ShowEvent(event);
    return true;
  };
  Check(Follow(*agents, name, seen, deadline, two, ended));
  std::cout << "{\"resumed_after\":" << seen << "}" << std::endl;
  Check(Follow(*agents, name, seen, deadline, all, ended));
  Show("answer", ended.result());

  // Behind the last event there is none: the stream ends, and the run says how it ended.
  int behind = 0;
  const auto count = [&behind](const RunEvent&) { return ++behind > 0; };
  ended.Clear();
  Check(Follow(*agents, name, seen, deadline, count, ended));
  std::cout << "{\"behind\":" << behind << "}" << std::endl;
  Show("answer_behind", ended.result());

  GetRunRequest unknown;
  unknown.set_name("runs/00000000-0000-7000-8000-000000000000");
  GetRunResponse nothing;
  const Explanation error = Explain(agents->GetRun(NewContext(deadline).get(), unknown, &nothing));
  Show("code", error.code);
  Show("reason", error.reason);
}

}  // namespace

int main() {
  try {
    RunAgent();
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
