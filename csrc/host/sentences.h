// The sentences of a text, and which of them are likely to begin the answer to a query. The contract is python/qdengine/_host.pyi.
//
// Text is what Python holds: code points of 1, 2 or 4 bytes, read in place. Every scan goes forward once, so that time is linear in
// any text.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace qdengine::host {

// The code points of a Python str, which must outlive it.
class Text {
 public:
  explicit Text(PyObject* text)
      : object_(text), kind_(PyUnicode_KIND(text)), data_(PyUnicode_DATA(text)),
        size_(static_cast<int32_t>(PyUnicode_GET_LENGTH(text))) {}

  int32_t size() const { return size_; }
  Py_UCS4 operator[](int32_t i) const { return PyUnicode_READ(kind_, data_, i); }
  bool space(int32_t i) const { return Py_UNICODE_ISSPACE((*this)[i]); }

  // The first place at or behind `begin` where `term` stands, or -1.
  int32_t find(const Text& term, int32_t begin) const {
    return static_cast<int32_t>(PyUnicode_Find(object_, term.object_, begin, size_, 1));
  }

 private:
  PyObject* object_;
  int kind_;
  const void* data_;
  int32_t size_;
};

inline bool one_of(Py_UCS4 c, const char32_t* set) {
  for (; *set; ++set) {
    if (c == *set) return true;
  }
  return false;
}

inline bool chinese(Py_UCS4 c) { return (c >= 0x3400 && c <= 0x9fff) || (c >= 0xf900 && c <= 0xfaff); }
// Whether a character goes on with a word; a Chinese one is a word of its own.
inline bool in_word(Py_UCS4 c) { return Py_UNICODE_ISALNUM(c) && !chinese(c); }

inline int32_t skip(const Text& text, int32_t i, const char32_t* set) {
  while (i < text.size() && one_of(text[i], set)) ++i;
  return i;
}

inline int32_t skip_space(const Text& text, int32_t i) {
  while (i < text.size() && text.space(i)) ++i;
  return i;
}

// Where the sentence whose end may stand at `i` is over, or `i` where none ends. A Latin stop counts before white space alone; a
// Chinese one, and a line's end, always.
inline int32_t sentence_end(const Text& text, int32_t i) {
  const Py_UCS4 c = text[i];
  if (c == U'\n') return i + 1;
  if (one_of(c, U"。！？")) return skip(text, skip(text, i, U"。！？"), U"”’」』）");
  if (!one_of(c, U".!?…")) return i;
  const int32_t end = skip(text, skip(text, i, U".!?…"), U"\"'”’»)]");
  return end < text.size() && text.space(end) ? end : i;
}

// Almost every character of Latin text, none of which ends a sentence.
inline bool plain(Py_UCS4 c) { return (c >= U'A' && c <= U'z') || c == U' ' || c == U','; }

inline std::vector<int32_t> sentence_starts(const Text& text) {
  const int32_t first = skip_space(text, 0);
  std::vector<int32_t> starts;
  if (first < text.size()) starts.push_back(first);
  for (int32_t i = first; i < text.size();) {
    if (plain(text[i])) {
      ++i;
      continue;
    }
    const int32_t end = sentence_end(text, i);
    if (end == i) {
      // A run of stops that ends nothing is left behind whole.
      const int32_t run = skip(text, i, U".!?…");
      i = run > i ? run : i + 1;
      continue;
    }
    i = skip_space(text, end);
    if (i < text.size()) starts.push_back(i);
  }
  return starts;
}

class Sentences {
 public:
  // lowered: `text` in lower case, character by character; kept by the caller.
  Sentences(const Text& text, const Text& lowered)
      : starts_(sentence_starts(text)), heading_(starts_.size()), section_(starts_.size()), lowered_(lowered) {
    for (size_t s = 0; s < starts_.size(); ++s) {
      const int32_t end = s + 1 < starts_.size() ? starts_[s + 1] : text.size();
      int32_t last = end - 1;
      while (last >= starts_[s] && (text.space(last) || one_of(text[last], U"\"'”’»)]」』）"))) --last;
      bool ends_line = false;
      for (int32_t i = last + 1; i < end; ++i) ends_line |= text[i] == U'\n';
      const bool asks = last >= starts_[s] && one_of(text[last], U"?？");
      heading_[s] = asks || (ends_line && !stops(text, last) && short_line(text, starts_[s], last));
      if (s + 1 < starts_.size()) section_[s + 1] = section_[s] + (ends_line && !heading_[s]);
    }
  }

  const std::vector<int32_t>& starts() const { return starts_; }

  // The sentences with the term of a query, rising; terms of `stem` letters stand for all words that begin so.
  std::vector<int32_t> holders(const Text& term, int32_t stem) const {
    std::vector<int32_t> found;
    size_t s = 0;
    for (int32_t i = lowered_.find(term, 0); i >= 0; i = lowered_.find(term, i + term.size())) {
      if (!begins(term, i, stem)) continue;
      while (s + 1 < starts_.size() && starts_[s + 1] <= i) ++s;
      if (found.empty() || found.back() != static_cast<int32_t>(s)) found.push_back(static_cast<int32_t>(s));
    }
    return found;
  }

  std::vector<int32_t> scores(const std::vector<Text>& terms, int32_t stem) const {
    const size_t count = starts_.size();
    std::vector<double> overlap(count), of_section(count ? section_.back() + 1 : 0), score(count);
    double total = 0;
    for (const Text& term : terms) {
      const std::vector<int32_t> held = holders(term, stem);
      if (held.empty()) continue;
      const double weight = std::log1p(static_cast<double>(count) / static_cast<double>(held.size()));
      total += weight;
      int32_t section = -1;
      for (int32_t s : held) {
        overlap[s] += weight;
        if (section_[s] != section) of_section[section = section_[s]] += weight;
      }
    }
    for (size_t s = 0; s < count; ++s) {
      const double share = total > 0 ? overlap[s] / total : 0;
      score[s] = 0.24 * overlap[s] + 2.04 * share * share + 0.28 * of_section[section_[s]] - 0.23 * std::log1p(static_cast<double>(s));
      if (s > 0) score[s] += (heading_[s - 1] ? 0.86 : 0.14) * overlap[s - 1];
      if (s == 0 || section_[s] != section_[s - 1]) score[s] += 1.18;
      if (heading_[s]) score[s] -= 2.32;
    }
    const double least = count ? *std::min_element(score.begin(), score.end()) : 0.0;
    std::vector<int32_t> eighths(count);
    for (size_t s = 0; s < count; ++s) {
      eighths[s] = static_cast<int32_t>(std::min(std::nearbyint(8 * (score[s] - least)), 65535.0));
    }
    return eighths;
  }

  // offsets: [tokens][2], of which the ends count.
  void ranks(int32_t* out, const int32_t* offsets, int64_t tokens, int32_t head, const std::vector<int32_t>& scores) const {
    size_t s = 0, started = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t end = offsets[2 * t + 1] - head;
      out[t] = 0;
      if (end <= 0 || starts_.empty()) continue;
      while (s + 1 < starts_.size() && starts_[s + 1] < end) ++s;
      out[t] = 2 * scores[s];
      // The first token that ends behind a start: with byte-level BPE it begins with the space before the word.
      if (started < starts_.size() && starts_[started] < end) out[t] |= 1;
      while (started < starts_.size() && starts_[started] < end) ++started;
    }
  }

 private:
  // Whether a word with the stem `term`, which stands at `place`, begins there.
  bool begins(const Text& term, int32_t place, int32_t stem) const {
    if (!in_word(term[0])) return true;
    const int32_t end = place + term.size();
    const bool whole = term.size() == stem || end == lowered_.size() || !in_word(lowered_[end]);
    return whole && (place == 0 || !in_word(lowered_[place - 1]));
  }

  static bool stops(const Text& text, int32_t last) { return last >= 0 && one_of(text[last], U".!…:;。！：；"); }

  // Whether a sentence, from `begin` to its last character `last`, is as short as a heading.
  static bool short_line(const Text& text, int32_t begin, int32_t last) {
    int32_t words = 0;
    for (int32_t i = begin; i <= last; ++i) words += chinese(text[i]) || (in_word(text[i]) && (i == begin || !in_word(text[i - 1])));
    return words <= kHeadingWords;
  }

  static constexpr int32_t kHeadingWords = 12;

  std::vector<int32_t> starts_;
  std::vector<bool> heading_;     // a question, or a short line without a stop: what follows answers it
  std::vector<int32_t> section_;  // of each sentence: a heading and the paragraph behind it
  Text lowered_;
};

}  // namespace qdengine::host
