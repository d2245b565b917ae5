"""What thresholds warn of, and when they stop a run."""

import logging

import gin
import pytest

from recogdrive.training.watch import MetricWatch, Threshold, ThresholdReached


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def feed(watch, *values, metric="train/kl"):
    for step, value in enumerate(values, start=1):
        watch(step, {metric: value})


def test_a_value_out_of_bounds_is_named_with_its_bound_and_what_it_may_mean(caplog):
    feed(MetricWatch([Threshold("train/kl", above=0.5, hint="the policy runs away")]), 0.5, 0.75)
    assert warnings(caplog) == ["step 2: train/kl is 0.75, above 0.5 (the policy runs away)"]


def test_a_value_below_the_lower_bound_is_named_too(caplog):
    feed(MetricWatch([Threshold("eval/pdms", below=0.8)]), 0.9, 0.7, metric="eval/pdms")
    assert warnings(caplog) == ["step 2: eval/pdms is 0.7, below 0.8"]


def test_an_excursion_is_warned_of_once_and_the_next_one_again(caplog):
    feed(MetricWatch([Threshold("train/kl", above=1)]), 2, 3, 1, 4, 5)
    assert [message.split(":")[0] for message in warnings(caplog)] == ["step 1", "step 4"]


def test_a_run_stops_after_as_many_consecutive_values_as_its_patience():
    watch = MetricWatch([Threshold("train/kl", above=1, stop=True, patience=3, hint="look")])
    feed(watch, 2, 2, 0, 2, 2)
    with pytest.raises(
        ThresholdReached, match=r"^stopped after step 6: train/kl is 2.5, above 1, for 3 values in a row \(look\)$"
    ) as caught:
        watch(6, {"train/kl": 2.5})
    assert caught.value.step == 6


def test_all_thresholds_are_looked_at_before_one_stops_the_run(caplog):
    watch = MetricWatch([Threshold("train/kl", above=1, stop=True), Threshold("train/loss", above=1)])
    with pytest.raises(ThresholdReached):
        watch(1, {"train/kl": 2, "train/loss": 2})
    assert len(warnings(caplog)) == 2


def test_an_unknown_metric_is_refused_with_the_nearest_at_the_first_record_of_its_kind():
    watch = MetricWatch([Threshold("eval/pdsm", below=0.5)])
    watch(1, {"train/loss": 1.0})
    with pytest.raises(ValueError, match="no metric 'eval/pdsm' to watch. Did you mean 'eval/pdms'?"):
        watch(1, {"eval/pdms": 1.0, "eval/ade": 1.0})


def test_an_optional_metric_that_nobody_reports_is_warned_of_once(caplog):
    feed(MetricWatch([Threshold("train/comfort", below=0.5, optional=True)]), 1, 1)
    assert warnings(caplog) == ["there is no metric 'train/comfort' to watch. Its threshold has no effect."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "kl", "above": 1}, "metric='kl' must start with"),
        ({"metric": "train/kl"}, "needs a bound"),
        ({"metric": "train/kl", "above": float("nan")}, "above=nan"),
        ({"metric": "train/kl", "above": 1, "below": 2}, "above=1 and below=2"),
        ({"metric": "train/kl", "above": 1, "patience": 0}, "patience=0"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Threshold(**arguments)


def test_a_watch_is_composed_by_gin():
    gin.parse_config(
        """
        import recogdrive.training.watch
        kl/Threshold.metric = "train/kl"
        kl/Threshold.above = 0.1
        kl/Threshold.stop = True
        MetricWatch.thresholds = [@kl/Threshold()]
        """
    )
    with pytest.raises(ThresholdReached):
        gin.get_configurable(MetricWatch)()(1, {"train/kl": 0.2})
