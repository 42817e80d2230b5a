// SPDX-License-Identifier: Apache-2.0
//
// Keeps a tree of plain files that looks like sysfs for programs that look for XPUs: PCI functions
// with NUMA node and SR-IOV attributes, and the device class. A correct file is not written again.
#define _GNU_SOURCE
#include "sysfs.h"
#include "nodes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

enum { PATH = 512 };

// All files that a PCI function's directory may hold, for its removal.
static const char *const attributes[] = {
    "vendor",       "device", "subsystem_vendor", "subsystem_device", "numa_node", "sriov_totalvfs",
    "sriov_numvfs", "physfn", "virtfn0",          "virtfn1",          "virtfn2",   "virtfn3",
    "driver",       NULL,
};

static void print(char *path, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void print(char *path, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path, PATH, format, arguments);
    va_end(arguments);
}

static bool make_directories(int root, const char *path) {
    char part[PATH];
    print(part, "%s", path);
    for (char *slash = part; (slash = strchr(slash, '/')) != NULL; *slash++ = '/') {
        *slash = '\0';
        if (mkdirat(root, part, 0755) != 0 && errno != EEXIST)
            return false;
    }
    return mkdirat(root, part, 0755) == 0 || errno == EEXIST;
}

// Returns the content of a small file or the target of a symlink, empty if there is none.
static const char *look(int root, const char *path, char *text) {
    ssize_t length = readlinkat(root, path, text, PATH - 1);
    if (length < 0) {
        int descriptor = openat(root, path, O_RDONLY | O_CLOEXEC);
        length = descriptor < 0 ? 0 : read(descriptor, text, PATH - 1);
        if (descriptor >= 0)
            close(descriptor);
    }
    text[length < 0 ? 0 : length] = '\0';
    return text;
}

// Puts a whole file in place: readers never see a part of one.
static bool put(int root, const char *directory, const char *name, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static bool put(int root, const char *directory, const char *name, const char *format, ...) {
    char path[PATH], draft[PATH], text[PATH], there[PATH];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    print(path, "%s/%s", directory, name);
    print(draft, "%s/.%s", directory, name);
    if (strcmp(look(root, path, there), text) == 0)
        return true;
    int descriptor = openat(root, draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor < 0)
        return false;
    bool good = write(descriptor, text, strlen(text)) == (ssize_t)strlen(text);
    close(descriptor);
    return good && renameat(root, draft, root, path) == 0;
}

static bool point(int root, const char *directory, const char *name, const char *target) {
    char path[PATH], draft[PATH], there[PATH];
    print(path, "%s/%s", directory, name);
    print(draft, "%s/.%s", directory, name);
    if (strcmp(look(root, path, there), target) == 0)
        return true;
    unlinkat(root, draft, 0);
    return symlinkat(target, root, draft) == 0 && renameat(root, draft, root, path) == 0;
}

// A card's functions are below its bridges; without any, at the root complex of their own bus.
static const char *directory_of(const struct card *card, unsigned pci, char *path) {
    const struct bridges *bridges = &card->bridges;
    int length = snprintf(path, PATH, "devices/pci%.7s/",
                          pci_address(bridges->count ? bridges->items[0] : pci).text);
    for (int i = 0; i < bridges->count; i++)
        length += snprintf(path + length, (size_t)(PATH - length), "%s/",
                           pci_address(bridges->items[i]).text);
    snprintf(path + length, (size_t)(PATH - length), "%s", pci_address(pci).text);
    return path;
}

// Returns the directory to which the bus's entry of a function leads, empty without one.
static const char *present_directory(int root, const char *name, char *path) {
    static const char up[] = "../../../";
    char link[PATH], target[PATH];
    print(link, "bus/pci/devices/%s", name);
    look(root, link, target);
    print(path, "%s", strncmp(target, up, strlen(up)) == 0 ? target + strlen(up) : "");
    return path;
}

static void drop_attribute(int root, const char *directory, const char *name) {
    char path[PATH];
    print(path, "%s/%s", directory, name);
    unlinkat(root, path, 0);
}

static void take_away(int root, const char *directory, const char *const *names) {
    for (; *names != NULL; names++)
        drop_attribute(root, directory, *names);
    unlinkat(root, directory, AT_REMOVEDIR);
}

// Removes a function's directory, and the bridges and the bus above it if they are empty.
static void take_function(int root, char *directory) {
    take_away(root, directory, attributes);
    for (char *end; (end = strrchr(directory, '/')) != strchr(directory, '/');) {
        *end = '\0';
        unlinkat(root, directory, AT_REMOVEDIR);
    }
}

// The link of a function to its driver.
static bool bind_driver(int root, const char *directory, const char *name) {
    char driver[PATH], target[PATH];
    if (name == NULL) {
        drop_attribute(root, directory, "driver");
        return true;
    }
    print(driver, "bus/pci/drivers/%s", name);
    print(target, "../../../%s", driver);
    return make_directories(root, driver) && point(root, directory, "driver", target);
}

static bool put_function(int root, const struct card *card, unsigned pci, bool vf,
                         const char *driver) {
    char directory[PATH], target[PATH];
    const struct model *model = card->model;
    char former[PATH];
    directory_of(card, pci, directory);
    present_directory(root, pci_address(pci).text, former);
    if (*former != '\0' && strcmp(former, directory) != 0)
        take_function(root, former);
    print(target, "../../../%s", directory);
    return make_directories(root, directory) &&
           put(root, directory, "vendor", "0x%04x\n", PCI_VENDOR) &&
           put(root, directory, "device", "0x%04x\n", vf ? model->vf_device : model->device) &&
           put(root, directory, "subsystem_vendor", "0x%04x\n", model->subsystem_vendor) &&
           put(root, directory, "subsystem_device", "0x%04x\n", model->subsystem_device) &&
           put(root, directory, "numa_node", "%d\n", card->numa) &&
           bind_driver(root, directory, driver) &&
           point(root, "bus/pci/devices", pci_address(pci).text, target);
}

// VFs first: a reader that sees `sriov_numvfs` finds them.
static bool put_card(int root, const struct card *card, const char *driver) {
    char directory[PATH], pf[PATH], name[16], target[PATH];
    print(pf, "../%s", pci_address(card->pci).text);
    for (int vf = 0; vf < card->vfs; vf++)
        if (!put_function(root, card, vf_pci(card, vf), true, vf_driver(card, vf)) ||
            !point(root, directory_of(card, vf_pci(card, vf), directory), "physfn", pf))
            return false;
    if (!put_function(root, card, card->pci, false, driver))
        return false;
    directory_of(card, card->pci, directory);
    for (int vf = 0; vf < MAX_VFS; vf++) {
        print(name, "virtfn%d", vf);
        print(target, "../%s", pci_address(vf_pci(card, vf)).text);
        if (vf >= card->vfs)
            drop_attribute(root, directory, name);
        else if (!point(root, directory, name, target))
            return false;
    }
    if (card_splits(card))
        return put(root, directory, "sriov_totalvfs", "%d\n", card_total_vfs(card)) &&
               put(root, directory, "sriov_numvfs", "%d\n", card->vfs);
    drop_attribute(root, directory, "sriov_totalvfs"); // a board without the PCI capability
    drop_attribute(root, directory, "sriov_numvfs");
    return true;
}

static bool put_unit(int root, int major, const struct unit *unit) {
    char directory[PATH], device[PATH], target[PATH];
    print(directory, "class/xpu/xpu%d", unit->node);
    print(target, "../../../%s", directory_of(unit->card, unit_pci(unit), device));
    return make_directories(root, directory) &&
           put(root, directory, "dev", "%d:%d\n", major, unit->minor) &&
           point(root, directory, "device", target);
}

static void drop_unit(int root, const struct machine *machine, const char *name) {
    static const char *const names[] = {"dev", "device", NULL};
    char path[PATH];
    int number = node_number(name);
    print(path, "class/xpu/%s", name);
    if (number != UNSET && machine->by_node[number] == NULL)
        take_away(root, path, names);
}

// Removes XPUs only: a tree may hold other devices.
static void drop_function(int root, const struct machine *machine, const char *name) {
    char directory[PATH], path[PATH], there[PATH];
    unsigned domain, bus, slot, function;
    if (sscanf(name, "%4x:%2x:%2x.%1x", &domain, &bus, &slot, &function) != 4)
        return;
    unsigned pci = domain << 16 | bus << 8 | slot << 3 | function;
    if (machine_has_address(machine, pci))
        return;
    print(path, "%s/vendor", present_directory(root, name, directory));
    if (strtol(look(root, path, there), NULL, 16) != PCI_VENDOR)
        return;
    print(path, "bus/pci/devices/%s", name);
    unlinkat(root, path, 0);
    take_function(root, directory);
}

static void drop(int root, const struct machine *machine, const char *path,
                 void (*drop_one)(int, const struct machine *, const char *)) {
    int descriptor = openat(root, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = descriptor < 0 ? NULL : fdopendir(descriptor);
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;)
        drop_one(root, machine, entry->d_name);
    if (directory != NULL)
        closedir(directory);
}

static bool put_all(int root, const struct machine *machine) {
    if (!make_directories(root, "class/xpu") || !make_directories(root, "bus/pci/devices"))
        return false;
    for (unsigned i = 0; i < machine->card_count; i++)
        if (!put_card(root, &machine->cards[i],
                      machine->settings.gone ? NULL : card_driver(&machine->cards[i])))
            return false;
    int major = node_major(machine);
    for (unsigned i = 0; i < machine->unit_count; i++)
        if (!put_unit(root, major, &machine->units[i]))
            return false;
    return true;
}

bool sysfs_settle(const struct machine *machine, const char *root, struct error *error) {
    struct statfs status;
    if (root == NULL || *root == '\0')
        return true;
    int descriptor = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0)
        return fail(error, "sysfs-root %s: %s", root, strerror(errno));
    bool real = fstatfs(descriptor, &status) == 0 && status.f_type == SYSFS_MAGIC;
    if (!real) {
        drop(descriptor, machine, "class/xpu", drop_unit);
        drop(descriptor, machine, "bus/pci/devices", drop_function);
    }
    bool good = real || put_all(descriptor, machine) ||
                fail(error, "cannot write below sysfs-root %s: %s", root, strerror(errno));
    close(descriptor);
    return good;
}
