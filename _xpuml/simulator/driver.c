// SPDX-License-Identifier: Apache-2.0
//
// Makes file and host agree with a machine, and splits cards.
#include "driver.h"
#include "nodes.h"
#include "sysfs.h"

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
