/* fake_nvml.c - a libnvidia-ml.so.1 that knows one card; for test_nvml.c. */
#include <string.h>

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlSystemGetDriverVersion(char *text, unsigned length);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **card);
int nvmlDeviceGetClockInfo(void *card, int type, unsigned *mhz);
int nvmlDeviceGetPowerUsage(void *card, unsigned *milliwatts);
int nvmlDeviceGetTemperature(void *card, int sensor, unsigned *celsius);
int nvmlDeviceGetCurrentClocksThrottleReasons(void *card, unsigned long long *bits);

static int open_count;
static char the_card;

int nvmlInit_v2(void)
{
    open_count++;
    return 0;
}

int nvmlShutdown(void)
{
    return open_count-- > 0 ? 0 : 1;
}

int nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    static const char version[] = "580.82.07";
    int fits = open_count > 0 && length >= sizeof version;
    memcpy(text, version, fits ? sizeof version : 0);
    return fits ? 0 : 7;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **card)
{
    *card = &the_card;
    return open_count > 0 && strcmp(bus, "0000:1B:00.0") == 0 ? 0 : 6;
}

int nvmlDeviceGetClockInfo(void *card, int type, unsigned *mhz)
{
    *mhz = 1980;
    return card == &the_card && type == 1 ? 0 : 2;
}

int nvmlDeviceGetPowerUsage(void *card, unsigned *milliwatts)
{
    *milliwatts = 698500;
    return card == &the_card ? 0 : 2;
}

int nvmlDeviceGetTemperature(void *card, int sensor, unsigned *celsius)
{
    *celsius = 63;
    return card == &the_card && sensor == 0 ? 0 : 2;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *card, unsigned long long *bits)
{
    *bits = 0x24;
    return card == &the_card ? 0 : 2;
}
