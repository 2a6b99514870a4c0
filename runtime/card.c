/* card.c - what this rank's GPU says about its clock, into the log and the next report. */
#include "base/log.h"
#include "base/nvml.h"
#include "runtime/trainer.h"

void card_open(struct trainer *trainer)
{
    if (trainer->place.device && trainer->training && trainer->config.logging.card_every > 0) {
        trainer->card = nvml_open(trainer->place.device);
    }
}

void card_close(struct trainer *trainer)
{
    nvml_close(trainer->card);
    trainer->card = NULL;
}

void card_report(struct trainer *trainer, int64_t step)
{
    struct nvml_state now;
    char reasons[160];
    if (!trainer->card || step % trainer->config.logging.card_every != 0 ||
        !nvml_read(trainer->card, &now)) {
        return;
    }
    struct report *report = &trainer->costs.last;
    report->sm_mhz = now.sm_mhz;
    report->watts = now.watts;
    report->celsius = now.celsius;
    report->throttle = (double)now.throttle; /* few bits */
    bool warn = nvml_throttle_is_bad(now.throttle) && !trainer->card_warned;
    trainer->card_warned |= warn;
    log_write(warn ? LOG_WARN : LOG_DEBUG,
              "step %lld: SM clock %.0f MHz, %.0f W, %.0f degrees C, held back by: %s",
              (long long)step, now.sm_mhz, now.watts, now.celsius,
              nvml_throttle_print(now.throttle, reasons, sizeof reasons));
}

void card_add(const struct report *report, struct step_cost *cost)
{
    if (report->sm_mhz <= 0) {
        return;
    }
    if (cost->cards == 0 || report->sm_mhz < cost->sm_mhz_least) {
        cost->sm_mhz_least = report->sm_mhz;
    }
    cost->celsius_most =
        report->celsius > cost->celsius_most ? report->celsius : cost->celsius_most;
    cost->watts += report->watts;
    cost->throttle |= (uint64_t)report->throttle;
    cost->cards++;
}
