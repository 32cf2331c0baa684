"""The patience loop that trains every model of the tutorial."""

from deeplearning_tutorial.training.results import Validation
from deeplearning_tutorial.training.run import Run


def train_with_patience(
    train_model,
    validate_model,
    test_model,
    n_train_batches,
    n_valid_batches,
    n_test_batches,
    n_epochs,
    patience,
    parameters,
    *,
    patience_increase=2,
    improvement_threshold=0.995,
    announce_every=None,
    optimiser=None,
    run=None,
):
    """Train minibatch by minibatch until patience or the epochs run out.

    Patience counts minibatches. A validation error below ``improvement_threshold`` times the best one
    extends it to ``patience_increase`` times the iteration reached (deep learning tutorial, section
    "Early-Stopping"; Bengio 2012, "Practical recommendations", section 3.1.1).

    Parameters
    ----------
    train_model, validate_model, test_model : callable
        Take the index of a minibatch. The first updates the parameters and returns the cost; the others
        return the fraction of misclassified examples.
    n_train_batches, n_valid_batches, n_test_batches : int
        Minibatches per split.
    n_epochs : int
        Maximum number of epochs.
    patience : int
        Minibatches to train regardless of progress.
    parameters : dict of str to shared variable
        Copied whenever the validation error improves.
    patience_increase : int
        See above.
    improvement_threshold : float
        See above.
    announce_every : int, optional
        Print the iteration each time this many minibatches have passed, as LeNet's script does.
    optimiser : dict of str to shared variable, optional
        What else ``train_model`` updates, such as velocities: part of the checkpoint, not of the model.
    run : Run, optional
        Keeps the files, shows the progress, and may continue from a checkpoint.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TrainingInterrupted
        On Ctrl-C, after the current minibatch or validation was finished and the files were written. A second
        Ctrl-C, and one while the first minibatch compiles, interrupts at once and writes nothing.
    DivergenceError
        If the cost becomes NaN or infinite.
    CompilationFinished
        Instead of training, if the run only precompiles.
    """
    run = Run() if run is None else run
    if run.precompile:
        run.compile(train_model, validate_model, test_model)
    n_iterations = n_epochs * n_train_batches
    # Once an epoch, or sooner: patience must not run out before the second look at the validation set.
    validation_frequency = min(n_train_batches, patience // 2)
    minibatches = (n_train_batches, n_valid_batches, n_test_batches)

    with run.training(parameters, optimiser, minibatches, n_iterations, patience) as result:
        iteration, patience = run.iteration, run.patience
        while iteration < n_iterations and iteration <= patience and not run.stopping:
            epoch, minibatch = divmod(iteration, n_train_batches)
            result.epochs = epoch + 1
            if announce_every and iteration % announce_every == 0:
                run.print("training @ iter = ", iteration)
            cost = run.check_cost(train_model(minibatch))
            iteration += 1

            if iteration % validation_frequency == 0:
                validation_error, test_error = run.mean_error(validate_model, n_valid_batches), None
                if validation_error < result.best_validation_error:
                    if validation_error < result.best_validation_error * improvement_threshold:
                        # Patience counts iterations from 0.
                        patience = max(patience, (iteration - 1) * patience_increase)
                    test_error = run.mean_error(test_model, n_test_batches)
                # This updates the result.
                when = epoch + 1, minibatch + 1, iteration
                run.record_validation(Validation(*when, cost, validation_error, test_error), patience)
            run.record_minibatch(iteration, cost)
    return result
