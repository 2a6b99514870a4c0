/* schedules.h - the schedules: each is a file and a row here, the name of its builder. */
#ifndef SCHEDULE_SCHEDULES_H
#define SCHEDULE_SCHEDULES_H

#ifndef SCHEDULES_MORE
#define SCHEDULES_MORE(row) /* a test adds one of its own */
#endif

#define SCHEDULES(row)                                                                             \
    row(gpipe) row(one_f_one_b) row(interleaved) row(zb_h1) row(zb_v) row(forward)                 \
        SCHEDULES_MORE(row)

#endif
