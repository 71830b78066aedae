"""Training on several devices, of one machine or of many, with the losses that one device would have.

A batch is made whole, with the composition that the recipe asks for, and then cut into a part for each device: so
what is learned from doesn't depend on how many there are, and 3 devices share 128 pictures as 42, 43 and 43. What one
device computes over a batch is summed over the parts: the loss, the gradients, batch norm's statistics (Zhang et al.
2018, "Context Encoding for Semantic Segmentation"); and dropout is drawn for the whole batch.

    python -m fag_utils.devices 2 program.py ...      # two workers on this machine, as two machines would be

starts a program as often, each with its `TF_CONFIG`, and all of it again when one of them dies. On a real cluster
its job manager does the same: it sets `TF_CONFIG` on each machine and restarts the job, which goes on from the last
checkpoint. All workers must see the data and the work folder under the same paths; the first one writes.
"""

import functools
import json
import os
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from fag_utils import training

DEVICES = ("one", "all", "workers")


@functools.cache
def strategy(devices):
    """What shares the work: None for "one", a MirroredStrategy for "all" the GPUs of this machine, a
    MultiWorkerMirroredStrategy for the "workers" that the environment variable `TF_CONFIG` lists.

    With "workers" call it before anything else is done with TensorFlow, which asks for that.
    """
    if devices not in DEVICES:
        raise ValueError(f"devices must be one of {DEVICES}, got {devices!r}")
    if devices == "workers":
        if "TF_CONFIG" not in os.environ:
            raise ValueError('devices="workers" needs the environment variable TF_CONFIG on every machine: '
                             '{"cluster": {"worker": ["host1:port", ...]}, "task": {"type": "worker", "index": 0}}')
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if devices == "all" else None


def parts(n, devices):
    """Where to cut n pictures for so many devices: devices + 1 bounds, as even as can be."""
    if devices > n:
        raise ValueError(f"{n} pictures of a batch can't be shared by {devices} devices")
    return n * np.arange(devices + 1) // devices


class SharedBatchNormalization(training.FusedBatchNormalization):
    """Batch norm over the whole batch, wherever its parts are."""

    def add_weight(self, *args, **settings):
        # All devices compute the same running statistics: any of them may say what they are.
        return super().add_weight(*args, **settings, aggregation="only_first_replica")

    def call(self, inputs, training=None, mask=None):
        replica = tf.distribute.get_replica_context()
        if not training or replica is None or replica.num_replicas_in_sync == 1:
            return super().call(inputs, training=training, mask=mask)
        axes = list(range(len(inputs.shape) - 1))
        here = tf.stack([tf.reduce_sum(inputs, axes), tf.reduce_sum(inputs**2, axes)])
        count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
        sums, count = replica.all_reduce(tf.distribute.ReduceOp.SUM, [here, count])
        mean = sums[0] / count
        variance = sums[1] / count - mean**2
        unbiased = variance * count / (count - 1)  # as the fused kernel keeps it
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            moving.assign(self.momentum * moving + (1 - self.momentum) * tf.stop_gradient(now))
        return tf.nn.batch_normalization(inputs, mean, variance, self.beta, self.gamma, self.epsilon)


class SharedDropout(keras.layers.Dropout):
    """Dropout drawn for the whole batch, of which each device takes its part. `whole`: how many pictures that has."""

    whole = None

    def call(self, inputs, training=False):
        replica = tf.distribute.get_replica_context()
        if not training or self.rate == 0 or replica is None:
            return super().call(inputs, training=training)
        first = self.whole * replica.replica_id_in_sync_group // replica.num_replicas_in_sync
        seed = tf.cast(self.seed_generator.state.value, tf.int32)  # the engine moves it on after the step
        ones = tf.ones((self.whole, *inputs.shape[1:]))
        drawn = tf.nn.experimental.stateless_dropout(ones, self.rate, seed)
        return inputs * drawn[first : first + tf.shape(inputs)[0]]


def _shared(layer):
    kinds = {keras.layers.BatchNormalization: SharedBatchNormalization, keras.layers.Dropout: SharedDropout}
    return kinds.get(type(layer), type(layer)).from_config(layer.get_config())


class SharedEngine(training.KerasEngine):
    """A `training.KerasEngine` whose step is shared by the devices of a strategy."""

    def __init__(self, model, recipe, steps, steps_per_epoch, strategy):
        self.recipe, self.strategy = recipe, strategy
        with strategy.scope():
            self.model = keras.models.clone_model(model, clone_function=_shared)
            self.model.set_weights(model.get_weights())
            training.compile_model(self.model, recipe, steps, steps_per_epoch)
            self.model.optimizer.build(self.model.trainable_variables)
        self.dropouts = [layer for layer in self.model.layers if isinstance(layer, SharedDropout) and layer.rate]
        self._step = tf.function(self._shared_step, autograph=False)

    def epoch(self, data, steps, seed, on_step):
        """Learn from the whole batches of one epoch; -> dict of its loss and metrics."""
        for layer in self.dropouts:
            layer.seed_generator.state.assign(seed)
        totals = {}
        for batch in data:
            for name, value in self._step(*self._distribute(batch)).items():
                totals[name] = totals.get(name, 0.0) + value.numpy().astype("float64")
            on_step()
        return {name: total[0] / max(total[1], 1e-9) for name, total in totals.items()}

    def _distribute(self, batch):
        """Each local device's part of a whole batch, as values of the strategy."""
        whole = len(batch[0])
        bounds = parts(whole, self.strategy.num_replicas_in_sync)
        for layer in self.dropouts:
            layer.whole = whole

        def part(device):
            here = slice(*bounds[device.replica_id_in_sync_group :][:2])
            return tuple(tf.nest.map_structure(lambda x: tf.convert_to_tensor(x[here]), tuple(batch)))

        return self.strategy.experimental_distribute_values_from_function(part), tf.constant(whole, tf.float32)

    def _shared_step(self, batch, whole):
        """One step of learning: -> dict of (sum, weight) of the loss and the metrics, over all devices."""
        variables = self.model.trainable_variables

        def on_device(batch):
            pictures, targets, weights = batch
            with tf.GradientTape() as tape:
                outputs = self.model(pictures, training=True)
                loss, sums = self._losses(outputs, targets, weights, whole)
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            replica = tf.distribute.get_replica_context()
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, (gradients, {**sums, "loss": loss}))

        # The sums are the same on all devices: the optimizer takes those of the first, and updates every copy.
        result = self.strategy.run(on_device, args=(batch,))
        first = tf.nest.map_structure(lambda value: self.strategy.experimental_local_results(value)[0], result)
        gradients, sums = first
        self.model.optimizer.apply(gradients, variables)
        for layer in self.dropouts:
            layer.seed_generator.state.assign_add([0, 1])
        return {**sums, "loss": tf.stack([sums["loss"], 1.0])}

    def _losses(self, outputs, targets, weights, whole):
        """This part's share of the loss, a mean over the whole batch as in Keras' `fit`, and of the metrics."""
        loss, sums = 0.0, {}
        for head, output in outputs.items():
            target, weight = targets[head], weights[head]
            loss += tf.reduce_sum(self.model.loss[head].call(target, output) * weight) / whole
            if head == "features":  # nothing to be right about: the loss says it all
                continue
            if head == "age":
                target = target if len(target.shape) == 2 else tf.one_hot(target, output.shape[-1])
                (mean, _), (wanted, inside) = training._expectation(output), training._expectation(target)
                weight, value = weight * inside, tf.abs(mean - wanted)
            else:
                value = tf.cast(tf.argmax(target, -1) == tf.argmax(output, -1), tf.float32)
            name = {"age": "mae", "gender": "accuracy"}.get(head, f"{head}_accuracy")
            sums[name] = tf.stack([tf.reduce_sum(value * weight), tf.reduce_sum(weight)])
        return loss, sums


def launch(number, command, restarts=10):
    """Run a command as `number` workers of this machine; when one dies, end the others and start all again.

    Returns the exit status: 0, or that of the worker that failed once more than `restarts` times.
    """
    for _ in range(restarts + 1):
        workers = _start(number, command)
        try:
            failed, states = [], [None]
            while not failed and None in states:
                time.sleep(0.1)
                states = [worker.poll() for worker in workers]
                failed = [state for state in states if state]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        if not failed:
            return 0
        print(f"a worker ended with status {failed[0]}: all are started again", file=sys.stderr, flush=True)
    return failed[0]


def _start(number, command):
    sockets = [socket.socket() for _ in range(number)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    for free in sockets:
        free.close()
    tasks = [json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
             for index in range(number)]
    return [subprocess.Popen(command, env={**os.environ, "TF_CONFIG": task}) for task in tasks]


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), [sys.executable, *sys.argv[2:]]))
