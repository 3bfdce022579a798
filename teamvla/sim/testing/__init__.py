"""The rules that every environment keeps, as checks that yours can run.

One call tells everything at once::

    from teamvla.sim.testing import check_environment

    check_environment(MyEnv)  # raises SimulationError with one line per broken rule

and so does each check by itself, for pytest::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_environment(check):
        check(MyEnv)

``MyEnv`` is whatever makes the environment when it is called without arguments: a class,
``functools.partial(make_env, config)``, a function of yours. It is called several times,
because the same episode must come out of every instance.
"""

from teamvla.sim.testing.checks import CHECKS, STEPS, check_environment, find_faults

__all__ = ["CHECKS", "STEPS", "check_environment", "find_faults"]
