// The passes that the GPU launches, run block by block and thread by thread in two orders, against the CPU backend bit
// for bit; and each region connected, by a flood fill that shares nothing with either. Ends with 0 and a count, or
// names what differs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "superpixels_connect_blocks.h"
#include "superpixels_cpu.h"

extern "C" int64_t cpn_superpixels_cpu_workspace(int, int, int, int64_t, double, int);
extern "C" int cpn_superpixels_cpu(const uint8_t*, int32_t*, int, int, int, int64_t, double, int, void*, int64_t);

namespace {

struct Case {
  std::string kind;
  int batch, height, width;
  int segments;
  double compactness;
};

[[noreturn]] void fail(const Case& test, const std::string& what) {
  std::printf("FAILED %s %dx%dx%d, %d segments, compactness %g: %s\n", test.kind.c_str(), test.batch, test.height,
              test.width, test.segments, test.compactness, what.c_str());
  std::exit(1);
}

std::vector<uint8_t> paint(const Case& test) {
  std::mt19937 random(static_cast<unsigned>(test.height * 1000 + test.width));
  std::vector<uint8_t> images(3 * static_cast<size_t>(test.batch) * test.height * test.width);
  for (size_t i = 0; i < images.size(); ++i) {
    const size_t pixel = i / 3;
    const int x = static_cast<int>(pixel % test.width), y = static_cast<int>(pixel / test.width) % test.height;
    const int noise = static_cast<int>(random() % 256);
    if (test.kind == "noise") images[i] = static_cast<uint8_t>(noise);
    else if (test.kind == "constant") images[i] = 130;
    else if (test.kind == "checks") images[i] = (x + y) % 2 ? 255 : 0;
    else if (test.kind == "corner") images[i] = x + y == 0 ? 255 : static_cast<uint8_t>((x / 9 + y / 7) % 3 * 60);
    else images[i] = static_cast<uint8_t>(((x / 13 * 37 + y / 11 * 91 + static_cast<int>(i % 3) * 50) % 200) + noise / 8);
  }
  return images;
}

std::vector<char> aligned(int64_t bytes, char*& begin) {
  std::vector<char> memory(static_cast<size_t>(bytes) + 64, '\x5a');  // nothing may rely on zeroed memory
  begin = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  return memory;
}

std::vector<int32_t> by_cpu(const Case& test, const std::vector<uint8_t>& images, int threads) {
  char* workspace;
  const int64_t bytes =
      cpn_superpixels_cpu_workspace(test.batch, test.height, test.width, test.segments, test.compactness, threads);
  const auto memory = aligned(bytes, workspace);
  std::vector<int32_t> labels(images.size() / 3, -7);
  const int status = cpn_superpixels_cpu(images.data(), labels.data(), test.batch, test.height, test.width,
                                         test.segments, test.compactness, threads, workspace, bytes);
  if (status != 0) fail(test, "status " + std::to_string(status));
  return labels;
}

std::vector<int32_t> by_blocks(const Case& test, const std::vector<uint8_t>& images, bool backwards) {
  cpn::Plan plan;
  if (!cpn::make_plan(test.height, test.width, test.segments, test.compactness, plan)) fail(test, "no plan");
  cpn::Arena count(nullptr, 0);
  cpn::make_job(plan, test.batch, nullptr, nullptr, count);
  char* workspace;
  const auto memory = aligned(static_cast<int64_t>(count.used()), workspace);
  std::vector<int32_t> labels(images.size() / 3, -7);
  cpn::Arena arena(workspace, count.used());
  const cpn::Job job = cpn::make_job(plan, test.batch, images.data(), labels.data(), arena);
  cpn::run_clustering(cpn::HostLauncher{backwards}, job);
  cpn::run_connectivity(cpn::HostLauncher{backwards}, job);
  return labels;
}

// Labels 0..n-1 in the order of their first pixels, each of one piece.
int check_regions(const Case& test, const int32_t* labels) {
  const int pixels = test.height * test.width;
  std::vector<char> met(pixels, 0);
  int count = 0;
  for (int first = 0; first < pixels; ++first) {
    if (met[first]) continue;
    if (labels[first] != count) fail(test, "label " + std::to_string(labels[first]) + " is in pieces or out of order");
    std::vector<int> open{first};
    met[first] = 1;
    while (!open.empty()) {
      const int at = open.back(), x = at % test.width;
      open.pop_back();
      const int near[4] = {x > 0 ? at - 1 : -1, x + 1 < test.width ? at + 1 : -1, at - test.width, at + test.width};
      for (int other : near) {
        if (other < 0 || other >= pixels || met[other] || labels[other] != count) continue;
        met[other] = 1;
        open.push_back(other);
      }
    }
    ++count;
  }
  return count;
}

// The connectivity pass alone, on clusters that no SLIC would give: patches, stripes and specks of a few clusters.
void check_connectivity(std::mt19937& random, int height, int width, int segments) {
  const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
  Case test{"clusters", 1, height, width, segments, 10};
  cpn::Plan plan;
  if (!cpn::make_plan(height, width, test.segments, test.compactness, plan)) fail(test, "no plan");
  test.segments = plan.segments;
  const int pixels = plan.pixels(), cell = 1 + below(6), noise = 2 + below(20), used = 1 + below(plan.clusters());
  std::vector<cpn::Centre> centres(plan.clusters());
  for (cpn::Centre& centre : centres) centre = {below(4), below(4), below(4), 0, 0};
  std::vector<int32_t> clusters(pixels);
  for (int i = 0; i < pixels; ++i) {
    clusters[i] = below(noise) == 0 ? below(used) : (i % width / cell * 7 + i / width / cell * 13) % used;
  }

  std::vector<int32_t> expected = clusters, start(pixels + 1), parent(pixels), size(pixels), target(pixels),
                       ranking(pixels), row_begin(height + 1);
  cpn::Runs runs{start.data(), parent.data(), size.data(), target.data(), row_begin.data(), ranking.data(), 0};
  cpn::connect_regions(plan, centres.data(), runs, expected.data());
  check_regions(test, expected.data());

  for (bool backwards : {false, true}) {
    cpn::Arena count(nullptr, 0);
    cpn::make_job(plan, 1, nullptr, nullptr, count);
    char* workspace;
    const auto memory = aligned(static_cast<int64_t>(count.used()), workspace);
    std::vector<int32_t> labels = clusters;
    cpn::Arena arena(workspace, count.used());
    const cpn::Job job = cpn::make_job(plan, 1, nullptr, labels.data(), arena);
    std::copy(centres.begin(), centres.end(), job.centres);
    cpn::run_connectivity(cpn::HostLauncher{backwards}, job);
    if (labels != expected) fail(test, backwards ? "connectivity backwards" : "connectivity forwards");
  }
}

}  // namespace

int main() {
  const std::vector<Case> cases = {
      {"texture", 2, 96, 128, 40, 10},   {"texture", 1, 61, 200, 7, 10},    {"texture", 1, 96, 128, 400, 30},
      {"texture", 1, 150, 140, 3, 0.5},  {"noise", 2, 50, 61, 20, 10},      {"noise", 1, 64, 64, 30, 0.01},
      {"constant", 1, 64, 48, 13, 10},   {"constant", 1, 1, 1, 5, 10},      {"constant", 1, 1, 40, 30, 10},
      {"constant", 1, 7, 3, 30, 10},     {"texture", 1, 300, 2, 5, 10},     {"texture", 1, 2, 300, 5, 1000},
      {"checks", 1, 40, 40, 10, 1},      {"checks", 1, 31, 33, 1, 0.001},   {"corner", 1, 60, 60, 12, 5},
      {"corner", 2, 37, 90, 1, 1},       {"noise", 1, 33, 50, 1, 1e6},      {"noise", 1, 20, 20, 400, 10},
  };
  for (const Case& test : cases) {
    const auto images = paint(test);
    const auto expected = by_cpu(test, images, 1);
    for (int threads : {2, 3, 8}) {
      if (by_cpu(test, images, threads) != expected) fail(test, std::to_string(threads) + " threads differ");
    }
    for (bool backwards : {false, true}) {
      if (by_blocks(test, images, backwards) != expected) fail(test, backwards ? "backwards" : "forwards");
    }
    for (int image = 0; image < test.batch; ++image) {
      const int count = check_regions(test, expected.data() + static_cast<size_t>(image) * test.height * test.width);
      if (count > test.segments) fail(test, std::to_string(count) + " regions");
    }
  }
  std::mt19937 random(1);
  constexpr int kRandomMaps = 2000;
  for (int i = 0; i < kRandomMaps; ++i) check_connectivity(random, 1 + random() % 24, 1 + random() % 24, 1 + random() % 12);
  check_connectivity(random, 1100, 1000, 4000);  // more tiles than a block has threads
  std::printf("%zu cases, %d random maps\n", cases.size(), kRandomMaps + 1);
  return 0;
}
