// _host: what the host does for every request, where Python is too slow. No tensors, no torch, no threads.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <random>

#include "../host/block_pool.h"
#include "../host/sentences.h"

PYBIND11_MAKE_OPAQUE(qdengine::host::Keys)  // a class of its own, not a list

namespace py = pybind11;
using namespace qdengine::host;

using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

static Key random_key() {
  std::random_device random;
  const auto half = [&] { return static_cast<uint64_t>(random()) << 32 | random(); };
  return {half(), half()};
}

static Key key_of(const py::bytes& bytes) {
  const std::string raw = bytes;
  Key key;
  if (raw.size() != sizeof key) throw py::value_error("a key has 16 bytes, not " + std::to_string(raw.size()));
  std::memcpy(&key, raw.data(), sizeof key);
  return key;
}

static py::bytes bytes_of(const Key& key) { return {reinterpret_cast<const char*>(&key), sizeof key}; }

static Ints array_of(const std::vector<int32_t>& numbers) { return Ints(static_cast<py::ssize_t>(numbers.size()), numbers.data()); }

static BlockPool make_pool(int32_t blocks, int32_t block_tokens) {
  if (blocks < 1 || block_tokens < 1) throw py::value_error("BlockPool: blocks and block_tokens must be positive");
  return BlockPool(blocks, block_tokens, random_key());
}

static Keys keys_of(const BlockPool& pool, const std::string& name, const Ints& tokens) {
  return pool.keys(name, tokens.data(), static_cast<size_t>(tokens.size()));
}

static Ints scores(const Sentences& sentences, const std::vector<py::str>& terms, int32_t stem) {
  std::vector<Text> texts;
  for (const py::str& term : terms) {
    if (py::len(term) == 0) throw py::value_error("Sentences.scores: a term is empty");
    texts.emplace_back(term.ptr());
  }
  return array_of(sentences.scores(texts, stem));
}

static Ints ranks(const Sentences& sentences, const Ints& scores, const Ints& offsets, int32_t head) {
  if (offsets.ndim() != 2 || offsets.shape(1) != 2) throw py::value_error("Sentences.ranks: offsets must have the shape [T, 2]");
  if (static_cast<size_t>(scores.size()) != sentences.starts().size()) throw py::value_error("Sentences.ranks: a score for each sentence");
  Ints out(offsets.shape(0));
  sentences.ranks(out.mutable_data(), offsets.data(), offsets.shape(0), head, {scores.data(), scores.data() + scores.size()});
  return out;
}

PYBIND11_MODULE(_host, m) {
  m.doc() = "What the host does for every request, where Python is too slow; documented in _host.pyi.";
  m.def("siphash", [](const py::bytes& key, const std::string& data) { return bytes_of(SipHash(key_of(key))(data.data(), data.size())); },
        py::arg("key"), py::arg("data"));
  m.def("sentence_starts", [](const py::str& text) { return sentence_starts(Text(text.ptr())); }, py::arg("text"));

  py::class_<Keys>(m, "Keys").def("__len__", &Keys::size).def("__getitem__", [](const Keys& keys, int64_t i) {
    if (i < 0 || i >= static_cast<int64_t>(keys.size())) throw py::index_error();
    return bytes_of(keys[i]);
  });

  py::class_<BlockPool>(m, "BlockPool")
      .def(py::init(&make_pool), py::arg("blocks"), py::arg("block_tokens"))
      .def_property_readonly("blocks", &BlockPool::blocks)
      .def_property_readonly("block_tokens", &BlockPool::block_tokens)
      .def_property_readonly("available", &BlockPool::available)
      .def("keys", &keys_of, py::arg("namespace"), py::arg("tokens"))
      .def("allocate", &BlockPool::allocate, py::arg("count"))
      .def("known", &BlockPool::known, py::arg("keys"), py::arg("most"))
      .def("acquire", &BlockPool::acquire, py::arg("keys"), py::arg("count"))
      .def("expect", &BlockPool::expect, py::arg("keys"), py::arg("index"))
      .def("give_up", &BlockPool::give_up, py::arg("keys"), py::arg("index"))
      .def("expected", &BlockPool::expected, py::arg("keys"), py::arg("index"))
      .def("publish", &BlockPool::publish, py::arg("keys"), py::arg("begin"), py::arg("blocks"))
      .def("release", &BlockPool::release, py::arg("blocks"))
      .def("release_all", &BlockPool::release_all);

  py::class_<Sentences>(m, "Sentences")
      .def(py::init([](const py::str& text, const py::str& lowered) {
             if (py::len(text) != py::len(lowered)) throw py::value_error("Sentences: text and lowered must be of one length");
             return Sentences(Text(text.ptr()), Text(lowered.ptr()));
           }),
           py::arg("text"), py::arg("lowered"), py::keep_alive<1, 3>())
      .def_property_readonly("starts", &Sentences::starts)
      .def("scores", &scores, py::arg("terms"), py::arg("stem"))
      .def("ranks", &ranks, py::arg("scores"), py::arg("offsets"), py::arg("head"));
}
