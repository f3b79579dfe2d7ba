#include "router/plan/outbox.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace baton::router {
namespace {

const TransferId& TransferOf(const RouterPiece& piece) {
  return std::visit([](const auto& item) -> const TransferId& { return item.transfer; }, piece);
}

// Rough sizes on the wire: fixed fields, token ids at 4 bytes, biases at 8.
size_t BytesOf(const SamplingSpec& sampling) {
  size_t bytes = 64 + 8 * sampling.logit_bias.size() + 4 * sampling.allowed_tokens.size();
  for (const std::vector<int32_t>& word : sampling.bad_words) bytes += 8 + 4 * word.size();
  return bytes;
}
size_t BytesOf(const std::vector<wire::SequenceSpec>& sequences) {
  size_t bytes = 0;
  for (const wire::SequenceSpec& sequence : sequences) bytes += 32 + 4 * sequence.received.size();
  return bytes;
}
size_t BytesOf(const MaskRules& masks) {
  return 32 + masks.grammar.size() + 4 * (masks.forced_prefix.size() + masks.reasoning_bans.size());
}
size_t BytesOf(const wire::Cancel& item) { return 48 + item.reason.size(); }
size_t BytesOf(const wire::Retarget&) { return 48; }
size_t BytesOf(const wire::PromptChunk& item) { return 48 + 4 * item.tokens.size(); }
size_t BytesOf(const wire::Reserve& item) {
  return 192 + item.request_id.size() + item.salt.size() + BytesOf(item.sequences) +
         BytesOf(item.sampling) + 8 * item.finish.stop_tokens.size() + BytesOf(item.masks);
}
size_t BytesOf(const wire::Run& item) {
  return 320 + item.request_id.size() + item.salt.size() + BytesOf(item.sequences) +
         BytesOf(item.sampling) + 8 * item.finish.stop_tokens.size() + BytesOf(item.masks) +
         item.landing.kv_address.size() + item.verified_pages.size() / 8;
}

size_t BytesOf(const MoveSequence& item) {
  return 96 + (item.move.landing ? item.move.landing->kv_address.size() : 0);
}

// One message, or none while its builder is empty.
struct Packer {
  wire::RouterMessage message;
  size_t bytes = 0;
  std::unordered_map<TransferId, size_t>
      last_kind;  // of each transfer inside: an index of RouterPiece

  // RouterPiece lists the kinds in the order in which a worker applies them.
  bool Fits(const RouterPiece& piece, size_t piece_bytes) const {
    if (bytes == 0) return true;
    if (bytes + piece_bytes > wire::kMaxMessageBytes) return false;
    const auto last = last_kind.find(TransferOf(piece));
    return last == last_kind.end() || last->second <= piece.index();
  }
  void Put(RouterPiece piece, size_t piece_bytes) {
    bytes += piece_bytes;
    last_kind[TransferOf(piece)] = piece.index();
    std::visit([this](auto& item) { Append(std::move(item)); }, piece);
  }
  void Append(wire::Cancel item) { message.cancels.push_back(std::move(item)); }
  void Append(wire::Reserve item) { message.reserves.push_back(std::move(item)); }
  void Append(wire::Retarget item) { message.retargets.push_back(item); }
  void Append(wire::Run item) { message.runs.push_back(std::move(item)); }
  void Append(wire::PromptChunk item) { message.prompt_chunks.push_back(std::move(item)); }
  void Append(MoveSequence item) { message.moves.push_back(std::move(item.move)); }
};

}  // namespace

void Outbox::Add(SendToWorker send) {
  std::vector<Entry>& entries = boxes_[send.worker];
  if (const auto* cancel = std::get_if<wire::Cancel>(&send.piece)) {
    if (!cancel->sequence && TakeBack(entries, cancel->transfer)) return;
  }
  const size_t bytes = std::visit([](const auto& item) { return BytesOf(item); }, send.piece);
  entries.push_back(Entry{.send = std::move(send), .bytes = bytes});
}

bool Outbox::TakeBack(std::vector<Entry>& entries, const TransferId& transfer) {
  bool is_unheard = false;
  std::erase_if(entries, [&](const Entry& entry) {
    if (TransferOf(entry.send.piece) != transfer) return false;
    is_unheard = is_unheard || entry.send.introduces;
    return true;
  });
  return is_unheard;
}

std::vector<std::pair<WorkerId, wire::RouterMessage>> Outbox::Take() {
  std::vector<std::pair<WorkerId, wire::RouterMessage>> messages;
  for (auto& [worker, entries] : boxes_) {
    Packer packer;
    for (Entry& entry : entries) {
      if (!packer.Fits(entry.send.piece, entry.bytes)) {
        messages.emplace_back(worker, std::move(packer.message));
        packer = Packer{};
      }
      packer.Put(std::move(entry.send.piece), entry.bytes);
    }
    if (packer.bytes > 0) messages.emplace_back(worker, std::move(packer.message));
    entries.clear();
  }
  return messages;
}

}  // namespace baton::router
