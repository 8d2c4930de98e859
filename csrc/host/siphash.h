// SipHash-2-4 with 128 bits (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012): who does not know the key can make no
// two inputs meet, and 128 bits make a chance meeting beyond concern.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qdengine::host {

struct Key {
  uint64_t low = 0, high = 0;
  bool operator==(const Key& other) const { return low == other.low && high == other.high; }
};

class SipHash {
 public:
  explicit SipHash(Key key)
      : v0_(0x736f6d6570736575u ^ key.low), v1_(0x646f72616e646f6du ^ key.high ^ 0xee),
        v2_(0x6c7967656e657261u ^ key.low), v3_(0x7465646279746573u ^ key.high) {}

  Key operator()(const void* data, size_t size) {
    const unsigned char* p = static_cast<const unsigned char*>(data);
    uint64_t word = 0;
    for (size_t i = 0; i < size / 8; ++i) {
      std::memcpy(&word, p + 8 * i, 8);
      take(word);
    }
    word = 0;
    std::memcpy(&word, p + size / 8 * 8, size % 8);
    take(word | static_cast<uint64_t>(size) << 56);
    Key hash;
    v2_ ^= 0xee;
    hash.low = finish();
    v1_ ^= 0xdd;
    hash.high = finish();
    return hash;
  }

 private:
  static uint64_t rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

  void round() {
    v0_ += v1_, v1_ = rotate(v1_, 13) ^ v0_, v0_ = rotate(v0_, 32);
    v2_ += v3_, v3_ = rotate(v3_, 16) ^ v2_;
    v0_ += v3_, v3_ = rotate(v3_, 21) ^ v0_;
    v2_ += v1_, v1_ = rotate(v1_, 17) ^ v2_, v2_ = rotate(v2_, 32);
  }

  void take(uint64_t word) {
    v3_ ^= word;
    round(), round();
    v0_ ^= word;
  }

  uint64_t finish() {
    round(), round(), round(), round();
    return v0_ ^ v1_ ^ v2_ ^ v3_;
  }

  uint64_t v0_, v1_, v2_, v3_;
};

}  // namespace qdengine::host
