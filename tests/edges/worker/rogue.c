// SPDX-License-Identifier: Apache-2.0
//
// A libxpuml of one device that does to its process what no simulated fault does. The environment
// variable ROGUE says what happens when the device is asked for its state; all else succeeds.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void to_sockets(const void *bytes, size_t size) {
    for (int descriptor = 3; descriptor < 64; descriptor++) {
        struct stat status;
        if (fstat(descriptor, &status) == 0 && S_ISSOCK(status.st_mode) &&
            write(descriptor, bytes, size) < 0)
            abort();
    }
}

static void send_frame(const char *text) {
    unsigned length = htonl(strlen(text));
    to_sockets(&length, sizeof length);
    to_sockets(text, strlen(text));
}

static void take(size_t mebibytes) {
    char *bytes = malloc(mebibytes << 20);
    if (bytes == NULL)
        abort();
    memset(bytes, 1, mebibytes << 20);
}

int xpumlDeviceGetState(void *device, int *state) {
    const char *deed = getenv("ROGUE");
    *state = 201;
    if (deed == NULL)
        return 0;
    if (strcmp(deed, "exit") == 0)
        exit(3);
    if (strcmp(deed, "close") == 0)
        for (int descriptor = 3; descriptor < 64; descriptor++)
            close(descriptor);
    if (strcmp(deed, "close") == 0)
        pause();
    if (strcmp(deed, "length") == 0)
        to_sockets("\xff\xff\xff\xff", 4);
    if (strncmp(deed, "frame:", 6) == 0)
        send_frame(deed + 6);
    if (strcmp(deed, "deep") == 0) {
        static char text[200001];
        memset(text, '[', sizeof text - 1);
        send_frame(text);
    }
    if (strcmp(deed, "leak") == 0)
        take(16);
    if (strcmp(deed, "balloon") == 0) // up to 1 GiB, in two seconds
        for (int part = 0; part < 256; part++) {
            take(4);
            usleep(8000);
        }
    if (strcmp(deed, "print") == 0)
        for (int line = 0; line < 10000; line++)
            printf("open device /dev/xpu%d failed\n", line);
    fflush(stdout);
    return 0;
}

int xpumlInit(void) { return 0; }
int xpumlShutdown(void) { return 0; }
const char *xpumlErrorString(int code) { return "some text"; }
int xpumlSystemGetDriverVersion(char *text, unsigned size) { return 0; }
int xpumlSystemGetXPUMLVersion(char *text, unsigned size) { return 0; }
int xpumlDeviceGetCount(unsigned *count) {
    *count = 1;
    return 0;
}
int xpumlDeviceGetHandleByIndex(unsigned index, void **device) {
    static int one;
    *device = &one;
    return 0;
}
int xpumlDeviceGetAttributes(void *device, void *record) { return 0; }
int xpumlDeviceGetArchitecture(void *device, unsigned *number) { return 0; }
int xpumlDeviceGetBoardId(void *device, unsigned *number) { return 0; }
int xpumlDeviceGetPciInfo(void *device, void *record) { return 0; }
int xpumlDeviceGetMemoryInfo(void *device, void *record) { return 0; }
int xpumlDeviceGetUtilizationRates(void *device, void *record) { return 0; }
int xpumlDeviceGetTemperature(void *device, int sensor, unsigned *number) { return 0; }
int xpumlDeviceGetPowerUsage(void *device, unsigned *number) { return 0; }
int xpumlDeviceGetClockInfo(void *device, int clock, unsigned *number) { return 0; }
int xpumlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *records) {
    *count = 0;
    return 0;
}
int xpumlDeviceGetHostVxpuMode(void *device, int *mode) { return 0; }
int xpumlDeviceSetSriovVfNum(void *device, int number) { return 0; }
