// Who owns which block of KV memory. Pure bookkeeping: no tensors. The contract is python/qdengine/_host.pyi.
//
// A block is free, held (one or more sequences refer to it) or idle: nobody refers to it, but its contents are a known piece of a
// document, kept until the memory is wanted, least recently used first. Idle blocks are a list linked through arrays.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "siphash.h"

namespace qdengine::host {

struct HashOfKey {
  size_t operator()(const Key& key) const { return key.low; }  // it is a hash already
};

using Keys = std::vector<Key>;

class BlockPool {
 public:
  BlockPool(int32_t blocks, int32_t block_tokens, Key secret)
      : block_tokens_(block_tokens), secret_(secret), refs_(blocks), key_(blocks), next_(blocks + 1), previous_(blocks + 1) {
    for (int32_t block = blocks; block-- > 0;) free_.push_back(block);
    next_[blocks] = previous_[blocks] = blocks;  // the list's end, in both directions
    known_.reserve(blocks);
  }

  int32_t block_tokens() const { return block_tokens_; }
  int32_t blocks() const { return static_cast<int32_t>(refs_.size()); }
  int64_t available() const { return static_cast<int64_t>(free_.size()) + idle_; }

  // A key covers its block and all before it, so that equal keys mean equal contents.
  Keys keys(const std::string& name, const int32_t* tokens, size_t count) const {
    const size_t size = static_cast<size_t>(block_tokens_);
    Keys keys;
    Key before = SipHash(secret_)(name.data(), name.size());
    std::vector<char> piece(sizeof(Key) + size * sizeof(int32_t));
    for (size_t begin = 0; begin + size <= count; begin += size) {
      std::memcpy(piece.data(), &before, sizeof(Key));
      std::memcpy(piece.data() + sizeof(Key), tokens + begin, size * sizeof(int32_t));
      keys.push_back(before = SipHash(secret_)(piece.data(), piece.size()));
    }
    return keys;
  }

  std::optional<std::vector<int32_t>> allocate(int64_t count) {
    if (count > available()) return std::nullopt;
    std::vector<int32_t> taken;
    for (int64_t i = 0; i < count; ++i) {
      int32_t block;
      if (free_.empty()) {
        block = next_[end()];
        unlink(block);
        known_.erase(*key_[block]);
        key_[block].reset();
      } else {
        block = free_.back();
        free_.pop_back();
      }
      refs_[block] = 1;
      taken.push_back(block);
    }
    return taken;
  }

  int64_t known(const Keys& keys, int64_t most) const {
    int64_t count = 0;
    while (count < most && count < static_cast<int64_t>(keys.size()) && known_.count(keys[count])) ++count;
    return count;
  }

  std::vector<int32_t> acquire(const Keys& keys, int64_t count) {
    std::vector<int32_t> taken;
    for (int64_t i = 0; i < count && i < static_cast<int64_t>(keys.size()); ++i) {
      const auto found = known_.find(keys[i]);
      if (found == known_.end()) break;
      if (refs_[found->second]++ == 0) unlink(found->second);
      taken.push_back(found->second);
    }
    return taken;
  }

  void expect(const Keys& keys, int64_t index) {
    if (index < static_cast<int64_t>(keys.size())) ++expected_[keys[index]];
  }

  void give_up(const Keys& keys, int64_t index) {
    if (index >= static_cast<int64_t>(keys.size())) return;
    const auto found = expected_.find(keys[index]);
    if (found != expected_.end() && --found->second == 0) expected_.erase(found);
  }

  bool expected(const Keys& keys, int64_t index) const {
    return index < static_cast<int64_t>(keys.size()) && expected_.count(keys[index]) > 0;
  }

  void publish(const Keys& keys, int64_t begin, const std::vector<int32_t>& blocks) {
    if (begin + blocks.size() > keys.size()) throw std::out_of_range("publish: more blocks than keys");
    for (size_t i = 0; i < blocks.size(); ++i) {
      const Key& key = keys[begin + i];
      if (known_.emplace(key, blocks[i]).second) key_.at(blocks[i]) = key;
    }
  }

  void release(const std::vector<int32_t>& blocks) {
    for (size_t i = blocks.size(); i-- > 0;) {
      if (refs_.at(blocks[i]) <= 0) throw std::logic_error("release: nobody holds block " + std::to_string(blocks[i]));
      if (--refs_[blocks[i]] == 0) leave(blocks[i]);
    }
  }

  void release_all() {
    for (int32_t block = 0; block < blocks(); ++block) {
      if (refs_[block] > 0) leave(block);
      refs_[block] = 0;
    }
    expected_.clear();
  }

 private:
  void leave(int32_t block) {
    if (key_[block]) {
      link(block);
    } else {
      free_.push_back(block);
    }
  }

  int32_t end() const { return blocks(); }

  void link(int32_t block) {  // as the most recently used
    const int32_t last = previous_[end()];
    next_[last] = previous_[end()] = block;
    next_[block] = end(), previous_[block] = last;
    ++idle_;
  }

  void unlink(int32_t block) {
    next_[previous_[block]] = next_[block];
    previous_[next_[block]] = previous_[block];
    --idle_;
  }

  int32_t block_tokens_;
  Key secret_;
  std::vector<int32_t> refs_;
  std::vector<std::optional<Key>> key_;
  std::vector<int32_t> next_, previous_, free_;
  int64_t idle_ = 0;
  std::unordered_map<Key, int32_t, HashOfKey> known_, expected_;
};

}  // namespace qdengine::host
