// Threads that live for one call. No pool outlives it, so that a process may fork between calls.
#pragma once

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace cpn {

class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}

  void wait() {
    if (members_ == 1) return;
    std::unique_lock<std::mutex> lock(mutex_);
    const long round = round_;
    if (++waiting_ == members_) {
      waiting_ = 0;
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round != round_; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  const int members_;
  int waiting_ = 0;
  long round_ = 0;
};

// Calls work(member) for 0 .. members - 1 at once, and returns when all have ended; false, with nothing done, where the
// system gives no threads. Work must not throw.
template <class Work>
bool run_team(int members, Work&& work) {
  std::vector<std::thread> others;
  std::mutex gate;  // held until all threads are there: members may wait for one another
  bool all_there = true;
  {
    std::lock_guard<std::mutex> closed(gate);
    try {
      others.reserve(members);
      for (int member = 1; member < members; ++member) {
        others.emplace_back([&, member] {
          { std::lock_guard<std::mutex> wait(gate); }
          if (all_there) work(member);
        });
      }
    } catch (const std::system_error&) {
      all_there = false;
    }
  }
  if (all_there) work(0);
  for (std::thread& other : others) other.join();
  return all_there;
}

}  // namespace cpn
