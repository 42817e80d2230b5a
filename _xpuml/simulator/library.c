// SPDX-License-Identifier: Apache-2.0
//
// Follows the machine file and lists the device nodes, with the vendor's faults or without.
#define _GNU_SOURCE // dladdr
#include "library.h"
#include "fault.h"
#include "nodes.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct library library = {.file = -1};

// --- the machine file ----------------------------------------------------------------------------

// A program that writes, moves or replaces a file changes one of these.
static bool is_same(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_nlink == b->st_nlink &&
           a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec && a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

// The minimum time between two looks at the file. Thousands of calls are one sweep, and a change of
// the file cannot be expected to show sooner.
enum { LOOK_NS = 10000 };

static bool is_time_to_look(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t moment = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    if (moment - library.looked < LOOK_NS)
        return false;
    library.looked = moment;
    return true;
}

// By the descriptor: a look-up of the path takes several times as long.
static bool is_unchanged(void) {
    struct stat status;
    return library.file >= 0 && fstat(library.file, &status) == 0 &&
           is_same(&status, &library.seen);
}

// Opens the file at the path for further looks. The descriptor is not a standard one, as the
// control node may need 0.
static bool look_into(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    int kept = fcntl(file, F_DUPFD_CLOEXEC, 3);
    close(file);
    if (kept < 0)
        return false;
    if (library.file >= 0)
        close(library.file);
    library.file = kept;
    return fstat(kept, &library.seen) == 0;
}

static bool follow(struct error *error) {
    if (library.machine != NULL && is_unchanged())
        return true;
    if (!look_into(library.site.path))
        return fail(error, "XPU_SIMULATOR_FILE %s: %s", library.site.path, strerror(errno));
    struct machine *machine = machine_read(library.site.path, error);
    if (machine == NULL)
        return false;
    if (library.machine != NULL)
        faults_carry_over(machine, library.machine);
    machine_free(library.machine);
    library.machine = machine;
    return true;
}

static const char *from_environment(const char *name) {
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? strdup(value) : NULL;
}

// Returns the file `machine` beside this library, NULL if there is none. So the simulator can take
// the vendor library's place without an environment variable.
static const char *beside(void) {
    Dl_info here;
    char path[4096];
    if (dladdr((const void *)&library, &here) == 0 || here.dli_fname == NULL)
        return NULL;
    const char *slash = strrchr(here.dli_fname, '/');
    int length = slash == NULL ? 0 : (int)(slash - here.dli_fname) + 1;
    snprintf(path, sizeof path, "%.*smachine", length, here.dli_fname);
    return access(path, R_OK) == 0 ? strdup(path) : NULL;
}

bool library_load(struct error *error) {
    if (library.site.path == NULL) {
        library.site.path = from_environment("XPU_SIMULATOR_FILE");
        if (library.site.path == NULL)
            library.site.path = beside();
        library.site.dev_root = from_environment("XPU_SIMULATOR_DEV_ROOT");
        library.site.sysfs_root = from_environment("XPU_SIMULATOR_SYSFS_ROOT");
    }
    if (library.site.path == NULL)
        return fail(
            error,
            "XPU_SIMULATOR_FILE is not set, and there is no file `machine` beside the library");
    return follow(error);
}

void library_refresh(void) {
    if (!is_time_to_look())
        return;
    struct error error;
    struct stat before = library.seen;
    if (library.machine != NULL && !follow(&error) && !is_same(&before, &library.seen))
        fprintf(stderr, "libxpuml simulator: %s: %s; the machine stays as it was\n",
                library.site.path, error.text);
}

struct site library_site(void) {
    struct site site = library.site;
    site_complete(&site, library.machine);
    return site;
}

// --- the list of devices -------------------------------------------------------------------------

static int compare(const void *left, const void *right) {
    const struct settings *settings = &library.machine->settings;
    return library_rank(settings, *(const int *)left) - library_rank(settings, *(const int *)right);
}

// Returns the numbers of the character devices named xpuN, in the order of indexes. Links are
// followed: see nodes.c.
static unsigned find_nodes(const char *dev_root, bool quirks, int *numbers) {
    DIR *directory = opendir(dev_root);
    unsigned count = 0;
    if (directory == NULL)
        return 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL && count < MAX_NODES;) {
        struct stat status;
        int number = node_number(entry->d_name);
        if (number != UNSET && fstatat(dirfd(directory), entry->d_name, &status, 0) == 0 &&
            S_ISCHR(status.st_mode))
            numbers[count++] = number;
    }
    if (!quirks) // the vendor's library leaks the descriptor
        closedir(directory);
    qsort(numbers, count, sizeof *numbers, compare);
    return quirks && count > LISTED_AT_MOST ? LISTED_AT_MOST : count;
}

// Returns the errno of an open of a node, 0 for success. A node of a major without a driver fails
// with ENXIO. There is no driver behind a simulated node, so that is a success.
static int refusal(const struct machine *machine, const char *dev_root, int number) {
    char path[4096];
    const struct unit *unit = machine->by_node[number];
    if (unit == NULL)
        return ENODEV;
    if (unit->card->unreadable)
        return card_refusal(unit->card);
    snprintf(path, sizeof path, "%s/xpu%d", dev_root, number);
    int descriptor = open(path, O_RDWR | O_NONBLOCK);
    if (descriptor >= 0)
        close(descriptor);
    return descriptor >= 0 || errno == ENXIO || errno == ENODEV ? 0 : errno;
}

int library_refusal(int number) {
    struct error error;
    bool known = library_load(&error) && number >= 0 && number < MAX_NODES;
    return known ? refusal(library.machine, library_site().dev_root, number) : ENODEV;
}

static unsigned keep_usable(const struct machine *machine, const char *dev_root, int *numbers,
                            unsigned count) {
    unsigned kept = 0;
    for (unsigned i = 0; i < count; i++) {
        if (machine->by_node[numbers[i]] == NULL)
            continue;
        if (refusal(machine, dev_root, numbers[i]) == 0)
            numbers[kept++] = numbers[i];
        else if (machine->settings.quirks)
            printf("open device %s/xpu%d failed\n", dev_root, numbers[i]);
    }
    return kept;
}

// XPU_VISIBLE_DEVICES: ranks in the list, up to the first invalid word. The vendor's parser leaves
// only the first word in the variable, and the next listing finds that.
static unsigned keep_visible(bool quirks, int *numbers, unsigned count) {
    char *visible = getenv("XPU_VISIBLE_DEVICES"), *rest = NULL, *end;
    static int chosen[MAX_NODES];
    unsigned kept = 0, room = quirks ? TABLE : MAX_NODES;
    if (visible == NULL)
        return count;
    char *copy = quirks ? NULL : strdup(visible);
    for (char *word = strtok_r(copy != NULL ? copy : visible, ",", &rest);
         word != NULL && kept < room; word = strtok_r(NULL, ",", &rest)) {
        unsigned long rank = strtoul(word, &end, 10);
        if (end == word || *end != '\0')
            break;
        if (rank < count)
            chosen[kept++] = numbers[rank];
        else if (quirks)
            chosen[kept++] = UNSET; // a gap: its use crashes
    }
    free(copy);
    memcpy(numbers, chosen, kept * sizeof *numbers);
    return kept;
}

// Entries are never freed, so that a stale handle is recognised: it crashes or is refused.
static void drop_devices(bool quirks) {
    size_t room = library.count > TABLE ? library.count : TABLE;
    if (library.devices != NULL && quirks)
        mprotect(library.devices, room * sizeof *library.devices, PROT_NONE);
    for (unsigned i = 0; i < library.count && !quirks; i++)
        library.devices[i].listed = false;
    library.devices = NULL;
    library.count = 0;
}

void library_list(void) {
    static int numbers[MAX_NODES];
    const struct machine *machine = library.machine;
    const struct site site = library_site();
    const char *dev_root = site.dev_root;
    bool quirks = machine->settings.quirks;
    driver_note_opening(&site);
    drop_devices(quirks);
    unsigned count = find_nodes(dev_root, quirks, numbers);
    count = keep_usable(machine, dev_root, numbers, count);
    count = keep_visible(quirks, numbers, count);
    size_t room = count > TABLE ? count : TABLE;
    struct xpuml_device *devices = mmap(NULL, room * sizeof *devices, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (devices == MAP_FAILED)
        return;
    for (unsigned i = 0; i < count; i++)
        devices[i] = (struct xpuml_device){.number = numbers[i], .listed = true};
    library.devices = devices;
    library.count = count;
}
