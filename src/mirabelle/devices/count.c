/* Counts the instructions that QEMU's user mode executes. close(MARK) in the guest writes the count so far as a line of the file out=PATH.
   The plugin interface is declared here, so that no header of QEMU's is needed; PLUGIN_VERSION is that of the QEMU at hand. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MARK 0x4d495241u
#define AARCH64_CLOSE 57

typedef uint64_t plugin;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin, void (*)(plugin, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin, void (*)(plugin, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

int qemu_plugin_version = PLUGIN_VERSION;
static uint64_t count;
static FILE *out;

static void executed(unsigned cpu, void *instructions) {
  __atomic_fetch_add(&count, (uint64_t)(uintptr_t)instructions, __ATOMIC_RELAXED);
}

static void translated(plugin id, struct qemu_plugin_tb *block) {
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void called(plugin id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                   uint64_t h) {
  if (number == AARCH64_CLOSE && (uint32_t)a == MARK) {
    fprintf(out, "%llu\n", (unsigned long long)count);
    fflush(out);
  }
}

int qemu_plugin_install(plugin id, const qemu_info_t *info, int argc, char **argv) {
  char *path = argc ? strchr(argv[0], '=') : NULL;
  out = path ? fopen(path + 1, "w") : stderr;
  if (!out) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
