"""What a training run will take, before anything is trained: parameters, operations, memory, time, data."""
