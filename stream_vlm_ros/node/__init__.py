# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The ROS 2 side: the node and what it is made of.

What it does with frames and questions once they are no messages any more is in `session`.

The node
    stream_vlm_node `StreamVlmNode`: parameters, the lifecycle, and how the parts hang together
    camera          one camera of it: images, memory, what is told of them
    lifecycle       transitions whose failures are told
    spinning        the executor that serves the node
    parameters      the table of settings as parameters: declared, described, read
    loading         from the parameters to a running engine
    interfaces      plain values <-> the generated messages
    awaiting        another thread's work, awaited in a callback
    error_log       internal errors: logged once, then counted

An image comes in
    image_input     the subscription: topic, type, QoS, why nothing arrives
    image_thread    its thread, apart from rclpy's executor
    serialized_image the message as it arrives, of which only the stamp is read
    pause_services  ~/pause and ~/resume
    images          ROS images -> arrays, and back

A pose comes in
    pose_input      the subscription, by the type that is published
    pose_messages   serialized messages -> poses; /tf, composed along a chain of frames

A question is answered
    ask_server      ~/query, ~/ask, ~/reset, ~/get_answers, and ~/answer
    answer_delta    ~/answer_delta: its text as it is written

The memory is saved and loaded
    memory_services ~/save_memory, ~/load_memory, ~/list_memories; ~/get_picture

What the node says of itself
    publishing      publishers, and what may be overridden of QoS
    annotated_image ~/annotated_image: what was seen last, and the last answer, for people
    captions        words on a picture
    health          what is counted, and what /diagnostics makes of it
"""
