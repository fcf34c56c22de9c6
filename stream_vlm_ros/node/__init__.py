"""The ROS 2 side: the node and what it is made of. The only place that imports rclpy.

The node
    stream_vlm_node `StreamVlmNode`: parameters, topics, services, lifecycle
    spinning        from the start of the process to its end
    parameters      the table of settings as parameters: declared, described, read
    loading         from the parameters to a running engine
    interfaces      plain values <-> the generated messages
    faults          a fault of this package: said once, and on it goes

An image comes in
    image_input     the subscription: topic, type, QoS, why nothing arrives
    image_thread    its thread, apart from rclpy's executor
    arrival         the message as it arrives: serialized, its stamp alone read
    ingest          messages -> frames -> chunks, and what becomes of each
    sampling        frames in time and in chunks: arithmetic on stamps
    images          ROS images -> arrays
    counters        what became of every frame

The engine works
    worker          one thread that owns it, and the queue in front of it
    turns           an answer's next token, or a chunk
    health          what is said on /diagnostics
"""
