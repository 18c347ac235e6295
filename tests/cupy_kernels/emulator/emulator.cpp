// The scheduler of the emulator: fibers of a block, in the order asked for, until all are done.
#include "emulator.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <string>
#include <thread>

// Saves the callee's registers on the stack and goes on with another stack.
#if defined(__x86_64__)
asm(R"(.pushsection .text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
.popsection
)");
#else
#error "the emulator's switch of stacks is written for x86-64 only"
#endif

namespace emulator {

thread_local Block* block;
thread_local Fiber* fiber;
bool late_copies = true, late_products = true;
static const char* kernel_name;
static const size_t STACK = 64 << 10;
static std::mutex message_lock;
static std::string message;
static std::atomic<bool> failed;
static thread_local bool in_scheduler;
struct Failure {};

void fail(const char* what, int tag) {
  dim3 b = block->index, t = fiber ? fiber->thread : dim3{0, 0, 0};
  char line[512];
  snprintf(line, sizeof line, "%s (kernel %s, block %u,%u,%u, thread %u,%u,%u, collective %d)", what, kernel_name, b.x, b.y,
           b.z, t.x, t.y, t.z, tag);
  {
    std::lock_guard<std::mutex> guard(message_lock);
    if (!failed.exchange(true)) message = line;
  }
  if (in_scheduler) throw Failure();
  for (;;) emulator_switch(&fiber->stack_pointer, block->scheduler);  // this fiber never goes on
}

static void enter() {
  (*block->body)();
  fiber->done = true;
  block->alive--;
  fiber->warp->count--;
  if (fiber->warp->arrived && fiber->warp->arrived == fiber->warp->count)
    fail("a lane ended while its warp waits in a collective");
  release(block->sync, block->alive);
  emulator_switch(&fiber->stack_pointer, block->scheduler);
  abort();
}

static void run_block(Block& b, std::vector<Fiber>& fibers, std::vector<unsigned>& turn, bool shuffle, std::mt19937& random) {
  while (b.alive) {
    bool any = false;
    if (shuffle) std::shuffle(turn.begin(), turn.end(), random);
    for (unsigned i : turn) {
      Fiber& f = fibers[i];
      if (f.done || (f.waits_on && *f.waits_on == f.waits_while)) continue;
      f.waits_on = nullptr;
      fiber = &f;
      any = true;
      in_scheduler = false;
      emulator_switch(&b.scheduler, f.stack_pointer);
      in_scheduler = true;
      if (failed) throw Failure();
    }
    if (any) continue;
    if (b.in_flight.empty()) {
      for (auto& f : fibers)
        if (!f.done) { fiber = &f; break; }
      fail("deadlock: threads wait at a barrier or in a collective that the others never reach");
    }
    auto land = std::move(b.in_flight.front());  // nobody can run before this copy lands
    b.in_flight.pop_front();
    land();
  }
}

static void work(dim3 grid, dim3 threads, size_t shared, const std::function<void()>& body, std::atomic<unsigned>& next,
                 const std::string& order) {
  unsigned count = threads.x * threads.y * threads.z, blocks = grid.x * grid.y * grid.z;
  char* stacks = (char*)mmap(nullptr, STACK * count, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  unsigned char* memory = (unsigned char*)aligned_alloc(1024, (shared + 1023) / 1024 * 1024 + 1024);
  std::vector<Fiber> fibers(count);
  std::vector<Warp> warps((count + 31) / 32);
  std::vector<unsigned> turn(count);
  bool shuffle = order.rfind("random:", 0) == 0;
  in_scheduler = true;
  for (unsigned number; !failed && (number = next.fetch_add(1)) < blocks;) {
    Block b;
    block = &b;
    b.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    b.threads = threads, b.grid = grid, b.shared = memory, b.shared_size = shared, b.alive = (int)count, b.body = &body;
    memset(memory, 0xff, shared);  // NaN, in bf16 and in fp32
    for (auto& warp : warps) warp.committed.clear(), warp.open.clear(), warp.arrived = warp.count = 0, warp.generation = 0;
    for (unsigned i = 0; i < count; i++) {
      Fiber& f = fibers[i] = Fiber();
      f.thread = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
      f.lane = (int)(i & 31);
      f.warp = &warps[i / 32];
      f.warp->count++;
      void** top = (void**)(stacks + STACK * (i + 1)) - 1;
      *top = nullptr;
      *--top = (void*)&enter;
      for (int k = 0; k < 6; k++) *--top = nullptr;
      f.stack_pointer = top;
      turn[i] = order == "reverse" ? count - 1 - i : i;
    }
    std::mt19937 random(number + (shuffle ? (unsigned)atoi(order.c_str() + 7) : 0));
    try {
      run_block(b, fibers, turn, shuffle, random);
    } catch (Failure&) {
      break;
    }
  }
  munmap(stacks, STACK * count);
  free(memory);
  block = nullptr;
  fiber = nullptr;
}

int launch(const char* name, const unsigned* grid, const unsigned* threads, size_t shared,
           const std::function<void()>& body, int workers) {
  if (shared > 227 * 1024) return 1;  // as Hopper refuses it
  if (threads[0] * threads[1] * threads[2] > 1024) return 2;
  kernel_name = name;
  failed = false;
  auto setting = [](const char* key, const char* otherwise) { const char* v = getenv(key); return std::string(v ? v : otherwise); };
  std::string async = setting("EMULATOR_ASYNC", "late"), order = setting("EMULATOR_ORDER", "forward");
  late_copies = async == "late";
  late_products = async != "eager";
  std::atomic<unsigned> next{0};
  dim3 g{grid[0], grid[1], grid[2]}, t{threads[0], threads[1], threads[2]};
  std::vector<std::thread> others;
  for (int i = 1; i < workers; i++) others.emplace_back([&] { work(g, t, shared, body, next, order); });
  work(g, t, shared, body, next, order);
  for (auto& thread : others) thread.join();
  return failed ? 3 : 0;
}

}  // namespace emulator

extern "C" const char* emulator_message() { return emulator::message.c_str(); }
