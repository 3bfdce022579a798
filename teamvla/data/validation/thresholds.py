"""The numbers that judgements turn on; :mod:`teamvla.data.validation.reasons` tells why.

A judgement must not cry over what a sound recording may hold: each threshold lies well
outside of what clean demonstrations of the simulator (with and without noise on the
commands) and the slowest and fastest usual robots show.
"""

from __future__ import annotations

MIN_STEPS = 10  # fewer say nothing about how a robot moves
MIN_EPISODES = 10  # fewer say nothing about what is usual in a set

MOST_NUMBERS = 1 << 20  # joint positions an episode is judged by; the steps behind them are not

# Motion.
DEFAULT_HZ = 20.0  # where neither a contract nor a timestamp tells the rate
FAST = 5.0  # rad/s; usual arms stay below 3.2
SPIKE = 2.0  # rad/s, both ways: no arm turns round so quickly within a step
FASTER_THAN_USUAL = 6.0  # times the 95 % quantile of the joint's own steps
MOVES = 0.1  # rad; a joint or an arm that covers less is hardly moving
LAG_RATIO = 0.95  # squared distance to q_t over that to q_t+1; clean demonstrations stay above 1.3
LAG_DELTA = 0.5  # squared distance of deltas to what they resemble over their own square
LAG_NOTICEABLE = 2e-3  # rad rms between the two, below which neither is nearer
SWAP_RATIO = 0.25  # squared distance to the other arm over that to the own one
SWAP_DISTANCE = 0.05  # rad rms between an arm's commands and its joints
OFFSET = 0.15  # rad between a command and the joint that follows it
KIND_RATIO = 0.04  # squared: five times nearer
KIND_DISTANCE = 0.2  # rad rms
LIMIT_SLACK = 0.05  # rad beyond a joint's limit
TURNS = 2 * 6.2832  # rad; joints do not turn this far, degrees do
VELOCITY_RATIO = 2.0
QUATERNION_SLACK = 0.02
GAP = 2.5  # times the usual time between steps

# Grippers.
AGAINST = -0.5  # correlation of command and measured opening
GRIP_RANGE = 0.5
METRES = 0.12  # no gripper opens wider than this in metres

# Pictures.
DARK = 16  # of 255; a covered lens reads less, even with the noise of its sensor
BRIGHT = 0.01  # share of a black picture's values above that: hot pixels
FROZEN_S = 0.5  # seconds
FROZEN_STEPS = 5
FROZEN_MOTION = 0.25  # rad that the fastest joint covers meanwhile
REPEAT_MOTION = 0.05  # rad a step: every camera sees that
REPEAT_SHARE = 0.3
REPEAT_COUNT = 5

# Sets.
MINORITY = 0.1  # share of episodes; more is another way of doing things, not a fault
ROBUST = 8.0  # scaled median absolute deviations
START = 0.15  # rad
SHORT, LONG = 0.25, 4.0  # times the median length
PICTURE_RATIO = 0.6  # distance once put right over distance as it is
PICTURE_DISTANCE = 5.0  # of 255, between pictures of the same mean brightness
