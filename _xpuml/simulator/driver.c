// SPDX-License-Identifier: Apache-2.0
//
// Makes file and host match a machine, and splits cards.
#include "driver.h"
#include "nodes.h"
#include "sysfs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

void site_complete(struct site *site, const struct machine *machine) {
    const struct settings *settings = &machine->settings;
    if (site->dev_root == NULL)
        site->dev_root = *settings->dev_root ? settings->dev_root : "/dev";
    if (site->sysfs_root == NULL)
        site->sysfs_root = settings->sysfs_root;
}

bool driver_settle(const struct machine *machine, const struct site *site, struct error *error) {
    return nodes_check(machine, site->dev_root, error) &&
           machine_write(machine, site->path, error) &&
           sysfs_settle(machine, site->sysfs_root, error) &&
           nodes_settle(machine, site->dev_root, error);
}

// The time of the lock file records it; that time has no other use.
static bool lock_file(const struct site *site, char *path, size_t size) {
    return snprintf(path, size, "%s.lock", site->path) < (int)size;
}

void driver_note_opening(const struct site *site) {
    char path[4096];
    if (lock_file(site, path, sizeof path))
        utimensat(AT_FDCWD, path, NULL, 0);
}

uint64_t driver_opened_at(const struct site *site) {
    char path[4096];
    struct stat status;
    if (!lock_file(site, path, sizeof path) || stat(path, &status) != 0)
        return 0;
    return (uint64_t)status.st_mtim.tv_sec * 1000000000 + (uint64_t)status.st_mtim.tv_nsec;
}

bool driver_split(const struct site *site, int card, int vfs, struct error *error) {
    int lock = machine_lock(site->path, error);
    if (lock < 0)
        return false;
    struct machine *machine = machine_read(site->path, error);
    bool good = machine != NULL;
    if (good && machine->by_number[card] == NULL)
        good = fail(error, "there is no card %d", card);
    if (good) {
        card_split(machine->by_number[card], vfs);
        good = machine_number(machine, error) && driver_settle(machine, site, error);
    }
    machine_free(machine);
    close(lock);
    return good;
}
