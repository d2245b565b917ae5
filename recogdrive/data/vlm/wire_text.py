"""Texts that the published ReCogDrive weights were trained and asked with.

They are a data format: one changed character gives other tokens than those the weights know. Carried over exactly from
upstream ReCogDrive (recorded in `golden/vlm/prompts.json`); not to be edited, reworded or translated.
"""

DRIVING_SYSTEM_TEXT = (
    "\n"
    "You are a vehicle trajectory prediction model for autonomous driving. Your task is to predict the ego "
    "vehicle's 4-second trajectory based on the following inputs: multi-view images from 8 cameras, ego "
    "vehicle states (position), and discrete navigation commands. The input provides a 2-second history, "
    "and your output should ensure a safe trajectory for the next 4 seconds. Your predictions must adhere "
    "to the following metrics:\n"
    "1. **No at-fault Collisions (NC)**: Avoid collisions with other objects/vehicles.\n"
    "2. **Drivable Area Compliance (DAC)**: Stay within the drivable area.\n"
    "3. **Time to Collision (TTC)**: Maintain a safe distance from other vehicles.\n"
    "4. **Ego Progress (EP)**: Ensure the ego vehicle moves forward without being stuck.\n"
    "5. **Comfort (C)**: Avoid sharp turns and sudden decelerations.\n"
    "6. **Driving Direction Compliance (DDC)**: Align with the intended driving direction.\n"
    "For evaluation, use the **PDM Score**, which combines these metrics: **PDM Score** = NC * DAC * "
    "(5*TTC + 5*EP + 2*C + 0*DDC) / 12.\n"
    "Your predictions will be evaluated through a non-reactive 4-second simulation with an LQR controller "
    "and background actors following their recorded trajectories. The better your predictions, the higher "
    "your score.\n"
)
"""System turn of every trajectory question; begins and ends with a line break."""

QUESTION = (
    "As an autonomous driving system, predict the vehicle's trajectory based on:\n"
    "1. Visual perception from front camera view\n"
    "2. Historical motion context (last 4 timesteps):{history}\n"
    "3. Active navigation command: [{command}]\n"
    "Output requirements:\n"
    "- Predict 8 future trajectory points\n"
    "- Each point format: (x:float, y:float, heading:float)\n"
    "- Use [PT, ...] to encapsulate the trajectory\n"
    "- Maintain numerical precision to 2 decimal places"
)
"""The question after the image; `history` and `command` are filled in."""

SFT_IMAGE = "<image>\n\n"
"""What stands before the question in Stage 1's training data."""
INFERENCE_IMAGE = "<image>\n"
"""The same when hidden states are cached and when the model is asked for a trajectory."""

SFT_HISTORY_ITEM = "-t-{step}: {point}"
INFERENCE_HISTORY_ITEM = "   - t-{step}: {point}"
"""A past pose, `step` half seconds ago; items are joined with one blank, oldest first."""

POINT = "({x}, {y}, {heading})"
ANSWER = "Here is the planning trajectory [PT, {points}]."
"""`points` are eight points joined with a comma and a blank."""

COMMANDS = ("TURN LEFT", "GO STRAIGHT", "TURN RIGHT", "UNKNOWN")
"""By the entries of `Command`. Upstream fails on the fourth; without any entry set it writes UNKNOWN."""
