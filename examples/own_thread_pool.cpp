// SPDX-License-Identifier: Apache-2.0

/// Bring your own threads: the library owns no pool and runs its tasks on whatever executor `Execution` carries. Here a
/// pool of std::threads that a program might have already. The bits do not depend on who computes them.

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"

using blockpack::index_t;

/// Threads that sleep until there is a loop to run; the caller helps.
class Pool {
 public:
  explicit Pool(int threads) : done_by(static_cast<std::size_t>(threads) + 1) {
    for (int t = 0; t < threads; ++t) threads_.emplace_back([this, t] { work(static_cast<std::size_t>(t)); });
  }
  ~Pool() {
    mutex_.lock();
    stop_ = true;
    mutex_.unlock();
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
  }

  /// The contract of Execution::Executor: runs f(0) … f(n - 1) and returns when all are done.
  void run(index_t n, const std::function<void(index_t)>& f) {
    {
      const std::lock_guard lock(mutex_);
      f_ = &f;
      n_ = n;
      next_ = 0;
      busy_ = threads_.size();
      ++round_;
    }
    wake_.notify_all();
    take(done_by.size() - 1, n, f);
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return busy_ == 0; });
  }

  std::vector<long> done_by;  ///< tasks each thread has run, the caller last

 private:
  void take(std::size_t self, index_t n, const std::function<void(index_t)>& f) {
    for (index_t i = next_++; i < n; i = next_++, ++done_by[self]) f(i);
  }
  void work(std::size_t self) {
    for (long seen = 0;;) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
      lock.unlock();
      take(self, n_, *f_);
      lock.lock();
      if (--busy_ == 0) idle_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  const std::function<void(index_t)>* f_ = nullptr;
  index_t n_ = 0;
  std::atomic<index_t> next_{0};
  std::size_t busy_ = 0;
  long round_ = 0;
  bool stop_ = false;
};

int main() {
  using namespace blockpack;
  const index_t out = 2000, in = 1000, tokens = 100;
  std::vector<float> w(out * in), x(tokens * in), alone(tokens * out), together(tokens * out);
  fill_weights(MatrixView<float>(w.data(), out, in), /*seed=*/1);
  fill_normal(x, /*seed=*/2);
  const auto op = Dense<float>::encode(MatrixView<const float>(w.data(), out, in));
  const MatrixView<const float> activations(x.data(), tokens, in);
  ApplyOptions how;
  how.execution.threads = 1;
  op.apply(activations, MatrixView<float>(alone.data(), tokens, out), how);

  Pool pool(3);
  how.execution.executor = [&pool](index_t n, const std::function<void(index_t)>& f) { pool.run(n, f); };
  for (int i = 0; i < 10; ++i) op.apply(activations, MatrixView<float>(together.data(), tokens, out), how);

  for (std::size_t t = 0; t < pool.done_by.size(); ++t)
    std::printf("%s %zu: %ld tasks\n", t + 1 < pool.done_by.size() ? "thread" : "caller", t, pool.done_by[t]);
  std::printf("same bits as one thread: %s\n", alone == together ? "yes" : "no");
  return alone == together ? 0 : 1;
}
