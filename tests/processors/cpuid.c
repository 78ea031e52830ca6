/* Makes a program see a processor with fewer instructions than this one has: LD_PRELOAD it with PROCESSOR=avx2, avx2-vnni, avx512 or avx512-vnni.

Libraries choose their kernels by CPUID. Linux can let that instruction fault (arch_prctl ARCH_SET_CPUID, on processors that have CPUID faulting); the handler
executes it, takes the bits of what this processor shall not have out of the answer, and goes on behind it. What runs then runs at full speed. Exit status 77
where that cannot be done. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))
#define UNSUPPORTED 77

enum { AVX2 = 1, AVX2_VNNI, AVX512, AVX512_VNNI };
static const char *NAMES[] = {"", "avx2", "avx2-vnni", "avx512", "avx512-vnni"};

/* Leaf 7, subleaf 0: AVX512 F DQ IFMA PF ER CD BW VL | VBMI VBMI2 VNNI BITALG VPOPCNTDQ | 4VNNIW 4FMAPS VP2INTERSECT FP16, AMX BF16 TILE INT8. */
static const uint32_t EBX_AVX512 = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const uint32_t ECX_AVX512 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14), ECX_AVX512_VNNI = BIT(11);
static const uint32_t EDX_AVX512 = BIT(2) | BIT(3) | BIT(8) | BIT(23), EDX_AMX = BIT(22) | BIT(24) | BIT(25);
/* Subleaf 1: AVX-VNNI, AVX512 BF16, AMX FP16 | AVX-VNNI-INT8, AVX-VNNI-INT16, AVX10. */
static const uint32_t EAX_AVX_VNNI = BIT(4), EAX_AVX512_BF16 = BIT(5), EAX_AMX_FP16 = BIT(21), EDX_VNNI_INT = BIT(4) | BIT(10) | BIT(19);

static int kind;
static struct sigaction theirs; /* what the program itself wants done about SIGSEGV */

static long faulting(int on) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, !on); }

static void limit(uint32_t leaf, uint32_t subleaf, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
  if (leaf != 7) return;
  if (subleaf == 0) {
    *d &= ~EDX_AMX;
    if (kind <= AVX2_VNNI) *b &= ~EBX_AVX512, *c &= ~ECX_AVX512, *d &= ~EDX_AVX512;
    if (kind == AVX512) *c &= ~ECX_AVX512_VNNI;
  } else if (subleaf == 1) {
    *a &= ~(EAX_AVX512_BF16 | EAX_AMX_FP16), *d &= ~EDX_VNNI_INT;
    if (kind != AVX2_VNNI) *a &= ~EAX_AVX_VNNI;
  }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *at = (const unsigned char *)r[REG_RIP];
  if (info->si_code == SI_KERNEL && at[0] == 0x0f && at[1] == 0xa2) {
    uint32_t leaf = r[REG_RAX], subleaf = r[REG_RCX], a, b, c, d;
    faulting(0);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
    faulting(1);
    limit(leaf, subleaf, &a, &b, &c, &d);
    r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d, r[REG_RIP] += 2;
  } else if (theirs.sa_flags & SA_SIGINFO) {
    theirs.sa_sigaction(number, info, context);
  } else if (theirs.sa_handler != SIG_DFL && theirs.sa_handler != SIG_IGN) {
    theirs.sa_handler(number);
  } else {
    signal(SIGSEGV, SIG_DFL), syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSEGV);
  }
}

typedef int (*sigaction_type)(int, const struct sigaction *, struct sigaction *);

/* A program that handles SIGSEGV itself, as Python's faulthandler does, is called for everything but CPUID. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  if (number != SIGSEGV || !kind) return ((sigaction_type)dlsym(RTLD_NEXT, "sigaction"))(number, new, old);
  if (old) *old = theirs;
  if (new) theirs = *new;
  return 0;
}

__attribute__((constructor)) static void start(void) {
  const char *name = getenv("PROCESSOR");
  int chosen = 0;
  for (int i = AVX2; name && i <= AVX512_VNNI; i++)
    if (!strcmp(name, NAMES[i])) chosen = i;
  if (!chosen) return;
  struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  if (sigaction(SIGSEGV, &ours, NULL) || faulting(1)) _exit(UNSUPPORTED);
  kind = chosen;
}
