// SPDX-License-Identifier: Apache-2.0
//
// Makes and removes device nodes, and never changes one that is not the simulator's own.
//
// A node is the simulator's if it is a character device of the machine's major and no driver in the
// kernel has that major, or a symlink to one of the two harmless devices below. Links are used if
// nodes cannot be made, or not opened (no privilege, a container's device rules, a file system
// mounted nodev). An even minor leads to 1:8 and an odd one to 1:3, so the last bit of a node's
// minor shows the half of a K200 in both cases.
#define _GNU_SOURCE // fstatat, makedev
#include "nodes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { USUAL_MAJOR = 240, MAJOR_OF_RELEASE_5 = 195 };

struct place {
    const char *path;
    int root; // descriptor of the directory
    int major;
    bool driverless; // no driver in this kernel has the major
};

static const char *const links[] = {"/dev/random", "/dev/null"};

int node_number(const char *name) {
    int number;
    if (strncmp(name, "xpu", 3) != 0 || (name[3] == '0' && name[4] != '\0') || name[3] == '-')
        return UNSET;
    return read_number(name + 3, 0, MAX_NODES - 1, &number) ? number : UNSET;
}

static bool major_is_free(int major) {
    FILE *devices = fopen("/proc/devices", "re");
    char line[128];
    int taken;
    bool free = true;
    while (devices != NULL && fgets(line, sizeof line, devices) && strncmp(line, "Block", 5) != 0)
        if (sscanf(line, "%d", &taken) == 1 && taken == major)
            free = false;
    if (devices != NULL)
        fclose(devices);
    return free;
}

int node_major(const struct machine *machine) {
    if (machine->settings.major != UNSET)
        return machine->settings.major;
    bool five = machine_release(machine) > 4 && major_is_free(MAJOR_OF_RELEASE_5);
    return five ? MAJOR_OF_RELEASE_5 : USUAL_MAJOR;
}

static bool is_link(const struct place *place, const char *name, const char *target) {
    char text[32];
    ssize_t length = readlinkat(place->root, name, text, sizeof text);
    return length == (ssize_t)strlen(target) && strncmp(text, target, strlen(target)) == 0;
}

static bool is_node(const struct place *place, const char *name, struct stat *status) {
    return place->driverless && fstatat(place->root, name, status, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISCHR(status->st_mode) && major(status->st_rdev) == (unsigned)place->major;
}

static bool is_ours(const struct place *place, const char *name) {
    struct stat status;
    return is_link(place, name, links[0]) || is_link(place, name, links[1]) ||
           is_node(place, name, &status);
}

static bool is_right(const struct place *place, const char *name, int minor) {
    struct stat status;
    if (minor == UNSET)
        return false;
    return is_link(place, name, links[minor & 1]) ||
           (is_node(place, name, &status) && minor(status.st_rdev) == (unsigned)minor);
}

// Returns the machine's minor for this name, UNSET for none.
static int wanted(const struct machine *machine, const char *name) {
    if (strcmp(name, "xpuctrl") == 0)
        return machine->settings.gone ? UNSET : control_minor(machine);
    int number = node_number(name);
    return number == UNSET || !machine->by_node[number] ? UNSET : machine->by_node[number]->minor;
}

// Checks the present nodes: all must be ours; wrong ones are removed on request.
static bool go_through(const struct machine *machine, const struct place *place, bool remove,
                       struct error *error) {
    DIR *directory = opendir(place->path);
    if (directory == NULL)
        return fail(error, "cannot list %s: %s", place->path, strerror(errno));
    bool good = true;
    for (struct dirent *entry; good && (entry = readdir(directory)) != NULL;) {
        const char *name = entry->d_name;
        if (strcmp(name, "xpuctrl") != 0 && node_number(name) == UNSET)
            continue;
        if (!is_ours(place, name))
            good = fail(error,
                        "%s/%s was not made by the simulator and stays; accepted: a dev-root "
                        "without such nodes, or the major that they were made with",
                        place->path, name);
        else if (remove && !is_right(place, name, wanted(machine, name)) &&
                 unlinkat(place->root, name, 0) != 0)
            good = fail(error, "cannot remove %s/%s: %s", place->path, name, strerror(errno));
    }
    closedir(directory);
    return good;
}

// A node of a major without a driver has nothing to open: that is intended.
static bool can_be_opened(const struct place *place, const char *name) {
    int descriptor = openat(place->root, name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (descriptor >= 0)
        close(descriptor);
    return descriptor >= 0 || errno == ENXIO || errno == ENODEV;
}

static bool make_node(const struct place *place, const char *name, int minor) {
    if (!place->driverless) {
        errno = EPERM;
        return false;
    }
    if (mknodat(place->root, name, S_IFCHR | 0666,
                makedev((unsigned)place->major, (unsigned)minor)) != 0)
        return false;
    if (fchmodat(place->root, name, 0666, 0) == 0 && can_be_opened(place, name))
        return true;
    unlinkat(place->root, name, 0);
    errno = EPERM;
    return false;
}

static bool make(const struct place *place, const char *name, int minor, struct error *error) {
    if (is_right(place, name, minor) || make_node(place, name, minor))
        return true;
    if (errno == EPERM && symlinkat(links[minor & 1], place->root, name) == 0)
        return true;
    return fail(error, "cannot make %s/%s: %s", place->path, name, strerror(errno));
}

static bool make_all(const struct machine *machine, const struct place *place,
                     struct error *error) {
    char name[16];
    for (unsigned i = 0; i < machine->unit_count; i++) {
        snprintf(name, sizeof name, "xpu%d", machine->units[i].node);
        if (!make(place, name, machine->units[i].minor, error))
            return false;
    }
    return machine->settings.gone || make(place, "xpuctrl", control_minor(machine), error);
}

static bool work(const struct machine *machine, const char *dev_root, bool change,
                 struct error *error) {
    int root = open(dev_root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return fail(error, "dev-root %s: %s", dev_root, strerror(errno));
    int major = node_major(machine);
    struct place place = {dev_root, root, major, major_is_free(major)};
    bool good;
    if (!place.driverless && geteuid() == 0)
        good = fail(error,
                    "major %d belongs to a driver of this kernel; accepted: set major=N "
                    "with a number that /proc/devices does not list",
                    major);
    else
        good = go_through(machine, &place, change, error) &&
               (!change || make_all(machine, &place, error));
    close(root);
    return good;
}

bool nodes_check(const struct machine *machine, const char *dev_root, struct error *error) {
    return work(machine, dev_root, false, error);
}

bool nodes_settle(const struct machine *machine, const char *dev_root, struct error *error) {
    return work(machine, dev_root, true, error);
}
