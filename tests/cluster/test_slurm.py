"""Sweeps on a SLURM of one node, started for them: as root, with Debian's slurm-wlm. `make cluster-test` runs this."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lit_grok

ROOT = Path(__file__).parents[2]
TINY = ("task=mod_add", "P=11", "network.hidden=[16]", "logger=none", "callbacks=base")
LARGEST_ARRAY = 10
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
MaxArraySize={largest_array}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a cluster's user: no accounting, hence no `sacct` that answers."""
    if os.geteuid() or not (shutil.which("slurmctld") and shutil.which("slurmd")):
        pytest.skip("starting SLURM takes root and slurm-wlm: apt-get install slurm-wlm")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname()
    ports = [free_port() for _ in range(2)]
    file = folder / "slurm.conf"
    file.write_text(
        SETTINGS.format(folder=folder, host=host, ports=ports, cpus=os.cpu_count(), largest_array=LARGEST_ARRAY)
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    environment = os.environ | {"SLURM_CONF": str(file), "WANDB_SILENT": "true"}
    daemons = []
    for name in ("slurmctld", "slurmd"):
        with open(folder / f"{name}.log", "w") as log:
            daemons.append(subprocess.Popen([name, "-D", "-f", str(file)], env=environment, stdout=log, stderr=log))
    wait(lambda: "idle" in said(environment, "sinfo", "-h", "-o", "%T"), 60)
    yield environment
    said(environment, "scancel", "--me")
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(60)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.5)


def said(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def start(slurm, folder, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=slurm", *TINY, *arguments]
    return subprocess.Popen(command, cwd=folder, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process):
    out, err = process.communicate(timeout=900)
    sys.stdout.write(f"\n{out}{err}[exit code {process.returncode}]\n")
    assert "Traceback" not in out + err
    return out, err


SWEEP = (
    *("init_scale=0.5,1,2,4", "seed=[0,1],[2,3],[4,5],[6,7]", "epochs=4000", "log_every=100", "checkpoint_every=500"),
    "run_dir=sweep/${init_scale}-${hydra:job.num}",
)


def queued(slurm):
    return said(slurm, "squeue", "--me", "--noheader", "--array", "--format=%i").split()


def job_ids(slurm):
    """The jobs by their number: SLURM counts on from one array to the next."""
    return sorted(queued(slurm), key=lambda job: [int(number) for number in job.split("_")])


def test_sixteen_jobs_of_which_three_are_killed(slurm, tmp_path):
    sweep = start(slurm, tmp_path, *SWEEP)
    wait(lambda: len(queued(slurm)) == 16, 120)
    ids = job_ids(slurm)
    said(slurm, "scancel", ids[15])
    killed, timed_out = (tmp_path / "sweep" / name for name in ("0.5-1", "0.5-2"))
    wait((killed / "checkpoints" / "last.ckpt").exists, 200)
    said(slurm, "scancel", ids[1])
    wait((timed_out / "checkpoints" / "last.ckpt").exists, 200)
    said(slurm, "scancel", "--signal=USR2", ids[2])  # what SLURM does before the time is over
    out, err = end(sweep)
    assert (sweep.returncode, err) == (1, "")
    last = out.splitlines()[-5:]
    assert last[:3] == [
        "16 jobs: 13 done, 2 stopped, 1 failed",
        "#1 init_scale=0.5 'seed=[2,3]': stopped: sweep/0.5-1",
        "#2 init_scale=0.5 'seed=[4,5]': stopped: sweep/0.5-2",
    ]
    assert last[3].startswith(f"#15 init_scale=4 'seed=[6,7]': failed: SLURM job {ids[15]} was killed")
    assert not (killed / "summary.json").exists()

    again = start(slurm, tmp_path, *SWEEP)
    out, err = end(again)
    assert (again.returncode, err) == (0, "")
    assert "16 jobs: 3 done, 13 skipped" in out
    for run in (timed_out, killed):
        assert f"going on from sweep/{run.name}/checkpoints/last.ckpt" in (run / "train.log").read_text()

    together = lit_grok.open_runs(tmp_path / "sweep" / "*")
    assert together.sizes["replica"] == 32
    assert (together.epochs == 4000).all()
    assert together.evaluation.test_accuracy.sel(epoch=4000).notnull().all()


def test_what_is_refused_is_told_at_once(slurm, tmp_path):
    begin = time.monotonic()
    sweep = start(slurm, tmp_path, "init_scale=-1,1", "epochs=2", "run_dir=same")
    out, _ = end(sweep)
    assert sweep.returncode == 1
    assert "#0 init_scale=-1: failed: init_scale=-1: must be a finite number, 0 or more" in out
    assert len(lit_grok.open_runs(tmp_path / "same*").replica) == 1
    assert time.monotonic() - begin < 120

    sweep = start(slurm, tmp_path, "init_scale=1,2", "hydra.launcher.partition=fast")
    _, err = end(sweep)
    assert sweep.returncode == 2
    assert err.splitlines()[-1].startswith("error: hydra/launcher=slurm: ")
    assert "invalid partition" in err


def test_studies_train_on_the_cluster(slurm, tmp_path):
    script = (
        "import studies, runpy, sys\n"
        "from studies.runs import Sweep\n"
        "from tests.test_reproduce import study, TINY\n"
        f"sweeps = [Sweep('tiny', 'mod_add', (0.1, 1.0), (*TINY, 'epochs=3')), "
        "Sweep('wrong', 'mod_add', (1.0,), (*TINY, 'epochs=3', 'train_fraction=0'))]\n"
        "studies.all_studies = lambda: [study(*sweeps)]\n"
        "sys.argv = ['reproduce.py', 'all', '--seeds', '2', '--launcher', 'slurm']\n"
        f"runpy.run_path('{ROOT}/reproduce.py', run_name='__main__')\n"
    )
    environment = slurm | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert found.stdout.count("done: ") == 2
    assert found.stderr.count("failed: ") == 2
    assert "train_fraction" in found.stderr
    assert len(list((tmp_path / "runs/studies").glob("mod_add-seed*/summary.json"))) == 2
