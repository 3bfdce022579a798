"""Why each judgement is made, how, and what to do about it.

The numbers come from the thresholds that the checks use, so that neither can change alone.
"""

from __future__ import annotations

from teamvla.data.explanations import Explanation
from teamvla.data.validation import thresholds as at

_PERCENT = f"{at.MINORITY:.0%}"
_SET = f"Looked for among {at.MIN_EPISODES} or more episodes of one task and contract"
_RARE = f"it is not reported if more than {_PERCENT} of the episodes are so: then it is a habit"

REASONS = {
    "E419": Explanation(
        "A policy would learn to move each arm by what the other one does.",
        f"The squared distance from each arm's commands to the other arm's joints is below "
        f"{at.SWAP_RATIO:g} times that to its own joints, and the latter exceeds "
        f"{at.SWAP_DISTANCE:g} rad rms. Deltas are not judged: how far a joint follows one within "
        "a step is the controller's affair, and tells arms apart too badly.",
        "Exchange q_a and q_b (or action_a and action_b) where the recorder names them.",
    ),
    "E420": Explanation(
        "Targets and differences are de-normalised differently: the robot would jump to a pose "
        "near zero, or drift away.",
        f"Read the other way, the commands lie {at.KIND_RATIO**-0.5:.0f} times nearer to the next "
        f"joint positions, and read as stated they miss by more than {at.KIND_DISTANCE:g} rad rms.",
        "State the true kind in the contract's action, or convert the columns.",
    ),
    "E421": Explanation(
        "A gripper with its sign flipped lets go where it should hold: 0 is open and 1 is closed, "
        "in the command and in the measured opening.",
        f"The command spans at least {at.GRIP_RANGE:g} and correlates below {at.AGAINST:g} with "
        "grip_q. A hand that lags or is stopped by an object still correlates positively.",
        "Store 1 - value for the one of the two that is the wrong way round.",
    ),
    "E433": Explanation(
        "What a policy has seen in training says nothing about what it has learned: the same "
        "episode in two splits makes validation and test look better than they are.",
        "Two files have the same columns, or the same positions and commands, by the checksums in "
        "their directories; the splits are those of the index that stands in the root, or those "
        "that index makes by default.",
        "Remove one of the two. index tells train, val and test apart by name, not by content.",
    ),
    "E437": Explanation(
        "Everything behind the contract computes in radians; degrees are 57 times too large.",
        f"A joint position lies beyond {at.TURNS:.3g} rad, two full turns.",
        "Convert with np.deg2rad before add_step, positions and actions alike.",
    ),
    "W401": Explanation(
        "A single wild value bends the normalisation and teaches a step that never happened.",
        f"A position differs from both neighbours, in the same direction, by more than "
        f"{at.SPIKE:g} rad/s, and the bend there exceeds {at.FASTER_THAN_USUAL:g} times the 90 % "
        "quantile of that joint's own bends (the differences of its steps). The quantile keeps "
        "quick and noisy robots quiet.",
        "Look at the sensor or its driver; drop the episode or interpolate that step.",
    ),
    "W402": Explanation(
        "A command far from the one before is a glitch of the recorder or of the operator's "
        "device; executed, it is dangerous.",
        f"A command changes by more than {at.FAST:g} rad/s and {at.FASTER_THAN_USUAL:g} times the "
        "95 % quantile of that joint's own changes.",
        "Look at that step. Filter commands before they are sent, and record what was sent.",
    ),
    "W403": Explanation(
        "A joint that skips was not recorded for a while, or was calibrated anew in between.",
        f"The position stays where it went: more than {at.FAST:g} rad/s and "
        f"{at.FASTER_THAN_USUAL:g} times the 95 % quantile of that joint's own steps.",
        "Split the episode there, or record it again.",
    ),
    "W405": Explanation(
        "A picture without light teaches to act blindly.",
        f"At most {at.BRIGHT:.0%} of a picture is above {at.DARK} of 255. Night scenes have lamps; "
        "a covered lens or a buffer that was never filled has nothing.",
        "Look at the camera and at the first pictures after its start; wait for it before "
        "recording.",
    ),
    "W406": Explanation(
        "The policy sees the past while the arms go on: it learns to ignore the camera.",
        f"The picture stays the same to the bit for at least {at.FROZEN_S:g} s and "
        f"{at.FROZEN_STEPS} steps while a joint covers more than {at.FROZEN_MOTION:g} rad (of its "
        "own arm, if the camera is named after one). A scene at rest is legal.",
        "Look at the camera's driver; drop the episode.",
    ),
    "W407": Explanation(
        "Every other picture is old: the effective delay jumps between one step and two.",
        f"At least {at.REPEAT_COUNT} steps, and {at.REPEAT_SHARE:.0%} of those in which a joint "
        f"moves more than {at.REPEAT_MOTION:g} rad, repeat the picture before, to the bit.",
        "Record at the rate of the slowest camera, or make that camera quicker.",
    ),
    "W408": Explanation(
        "One of the two cameras is missing: its field holds the other one's pictures.",
        "A sample of pixels of all pictures is the same to the bit.",
        "Look at how devices are assigned to fields.",
    ),
    "W409": Explanation(
        "A step that was stored twice is a pause that did not happen.",
        "Positions, commands and pictures all equal those of the step before, while a joint moves "
        f"more than {at.REPEAT_MOTION / 2:g} rad in the steps before and after.",
        "Look at the recorder's loop: it ran twice on one observation.",
    ),
    "W410": Explanation(
        "A sensor that is not read shows a constant; the policy loses that joint.",
        f"A position is the same to the bit in all steps while its command spans more than "
        f"{at.MOVES:g} rad.",
        "Look at that joint's sensor or its place in the vector.",
    ),
    "I411": Explanation(
        "A joint that is never used is legal, and sometimes a sign of a column never filled. "
        "Normalisation must not divide by its spread.",
        "A position is the same to the bit in all steps, and its command hardly changes.",
        "Nothing, if the joint was meant to stand still.",
    ),
    "I446": Explanation(
        "A picture that was late once is harmless; many of them are W407.",
        f"A picture equals the one before to the bit while a joint moves more than "
        f"{at.REPEAT_MOTION:g} rad in that step (of its own arm, if the camera has its name).",
        "Nothing, if they are few; else look at the camera's rate and its cable.",
    ),
    "W412": Explanation(
        "Action t must be what was sent after observation t. Shifted by one row, a policy learns "
        "to command where it already is, and stands still.",
        f"The commands of row t lie nearer to the positions of row t than to those of row t+1: "
        f"the squared distance is below {at.LAG_RATIO:g} times the other. Joints that move less "
        f"than {at.MOVES:g} rad are not judged; slow controllers only make the sound case clearer. "
        "Only this direction is judged: actions that stand a row too early look like those of a "
        "controller that lags. Under a contract of deltas only deltas that repeat the way just "
        f"made are found: within {at.LAG_DELTA:g} of their own square, not those of a slow joint.",
        "Store the command that is sent from an observation in the observation's own row.",
    ),
    "W413": Explanation(
        "An action that repeats the measured position tells a policy to stay where it is.",
        "All commands of an arm equal its positions of the same row, while the arm moves.",
        "Store the command, or (kinesthetic teaching) the position of the next row.",
    ),
    "W414": Explanation(
        "Exchanged cameras put each arm's picture where the other's belongs.",
        f"{_SET}: each of two cameras' first pictures resembles the usual one of the other; "
        f"exchanged, their distance is below {at.PICTURE_RATIO:g} times what it is, and that "
        f"exceeds {at.PICTURE_DISTANCE:g} of 255 at equal brightness; {_RARE}.",
        "Exchange the fields, or fix which device is which by its serial number.",
    ),
    "W422": Explanation(
        "Episodes from a recorder with the other sign (0 closed, 1 open) undo what the rest "
        "teaches.",
        f"{_SET}: the first gripper command lies more than 0.8 from the usual one; {_RARE}.",
        "Store 1 - value if the sign is flipped; nothing if the task really starts so.",
    ),
    "W423": Explanation(
        "An opening in metres is hardly a motion once the policy scales 0 .. 1.",
        f"The command changes and never exceeds {at.METRES:g}, about the widest opening in metres.",
        "Divide by the widest opening and turn it round: 0 is open, 1 is closed.",
    ),
    "W424": Explanation(
        "Steps are missing: the policy learns from a motion that is too quick.",
        f"The time between two steps exceeds {at.GAP:g} times the median.",
        "Look at what blocked the recorder; split the episode at the gap.",
    ),
    "W425": Explanation(
        "An episode that ends in success but is called a failure is lost to training on "
        "successes, and lowers every rate.",
        "The last step has success, the metadata has not. An episode that was cut off while "
        "success had not held for long enough looks the same: then the metadata is right.",
        "Pass end_episode(success=True), or let the step's flag say what the task asks for.",
    ),
    "W426": Explanation(
        "Either the task was done before it began, or the flag is the episode's, copied into each "
        "step.",
        "success is True in all steps.",
        "Store the predicate of each step; remove episodes that start at the goal.",
    ),
    "W429": Explanation(
        "A prompt of another task teaches to do the wrong thing when asked.",
        f"At most {_PERCENT} of the task's episodes use it, and it is frequent in another task, or "
        "names another task, or (in tasks of ten episodes and more) shares no word of three "
        "letters with the others. Fillers such as `with both arms` do not count.",
        "Correct the instruction, or move the episode to its task; a new wording is harmless.",
    ),
    "W430": Explanation(
        "Cloning a failed attempt teaches to fail.",
        "The episode's success is false, while most episodes of its task succeeded.",
        "Remove it, or index it apart. Meant for offline RL? Then --ignore W430.",
    ),
    "W431": Explanation(
        "A success that is never set makes every rate 0 and hides which attempts are good.",
        f"None of {at.MIN_EPISODES} or more episodes of a task succeeded.",
        "Set success in the steps and in end_episode, if they did succeed.",
    ),
    "W432": Explanation(
        "A copy counts double and adds nothing.",
        "Two files of one split have the same columns, or (from ten steps on) the same positions "
        "and commands, by the checksums in their directories. No robot repeats itself to the bit. "
        "Resets of a discrete world, by different seeds, may: these are not looked at.",
        "Remove one of the two.",
    ),
    "W434": Explanation(
        "A joint whose zero moved, or two arms calibrated differently: commands and positions do "
        "not speak of the same angle.",
        f"The median difference between a command and the position one row later exceeds "
        f"{at.OFFSET:g} rad and four times its own spread. Gravity bends uncompensated arms less.",
        "Calibrate the joint; subtract the offset in what was recorded.",
    ),
    "W435": Explanation(
        "An offset in positions and commands alike is invisible within one episode.",
        f"{_SET}: a joint's first position and its mean both lie more than {at.START:g} rad and "
        f"{at.ROBUST:g} scaled median deviations from the usual ones; {_RARE}.",
        "Compare with an episode of the same day; calibrate, or leave it if it was meant.",
    ),
    "W436": Explanation(
        "Numbers that do not mean the same must not be trained on together; index refuses them.",
        "Episodes of one call have contracts with different digests.",
        "Validate and index them apart: a root may be the folder of one task, data/aloha_transfer.",
    ),
    "W438": Explanation(
        "A position that the joint cannot have is an offset, a unit or an order gone wrong.",
        f"A position lies more than {at.LIMIT_SLACK:g} rad beyond the contract's joint limits.",
        "Compare the order of joints, the unit and the limits with the robot.",
    ),
    "W439": Explanation(
        "The policy sees a gripper that never moves.",
        f"The measured opening is the same to the bit in all steps while the command spans at "
        f"least {at.GRIP_RANGE:g}.",
        "Read the sensor, or leave grip_q out.",
    ),
    "W441": Explanation(
        "OpenCV has blue first; pretrained encoders want red first.",
        f"{_SET}: with red and blue exchanged the first picture's distance to the usual one is "
        f"below {at.PICTURE_RATIO:g} times what it is, and that exceeds "
        f"{at.PICTURE_DISTANCE:g} of 255; {_RARE}.",
        "Turn the last axis round: picture[..., ::-1].",
    ),
    "W442": Explanation(
        "Velocities in other units, or of other joints, mislead whoever looks at them.",
        f"Their ratio to the positions' rate of change is outside 1/{at.VELOCITY_RATIO:g} .. "
        f"{at.VELOCITY_RATIO:g}, or they do not go together (cosine below 0.5).",
        "Store rad/s in the order of q, or leave qd out.",
    ),
    "W443": Explanation(
        "A pose that is no rotation cannot be turned into one.",
        f"The length of ee's last four entries is off one by more than {at.QUATERNION_SLACK:g}.",
        "Store position, m, then the unit quaternion w x y z.",
    ),
    "W445": Explanation(
        "An episode that broke off, or ran on long after its end.",
        f"{_SET}: shorter than {at.SHORT:g} or longer than {at.LONG:g} times the median; {_RARE}. "
        "Successes in a discrete world, which may begin beside the goal, are not looked at.",
        "Look at it; trim or remove it.",
    ),
}  # fmt: skip
