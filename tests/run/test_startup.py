import pytest
import torch

from builders import ROOT, launch, tiny_run
from errors import UserError
from run.startup import _num_processes_of, check_deterministic, check_launch, code_digest
from run.trouble import explain
from settings.keys import Config, RunConfig, TrainConfig

SIMPLE = Config(run=RunConfig(), train=TrainConfig(steps=10, precision="no"))


def test_plain_launch_is_fine():
    check_launch(SIMPLE, 1, {})
    check_launch(SIMPLE, 1, {"ACCELERATE_MIXED_PRECISION": "no"})
    check_launch(
        Config(train=TrainConfig(steps=1, precision="fp16")),
        1,
        {"ACCELERATE_MIXED_PRECISION": "fp16"},
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision fp16, train.precision no"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps 4"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend"),
        ({"ACCELERATE_USE_FSDP": "true"}, "distributed_type FSDP, train.parallel ddp"),
        ({"WORLD_SIZE": "2"}, "started 2 processes, but each sees a world of 1"),
        ({"SLURM_PROCID": "0", "SLURM_NNODES": "2"}, "SLURM gave 2 nodes and only 1 process"),
    ],
)
def test_contradictions_with_the_launcher_are_named(environment, message):
    with pytest.raises(UserError, match=message):
        check_launch(SIMPLE, 1, environment)


def test_one_process_cannot_share_weights():
    cfg = Config(train=TrainConfig(steps=10, parallel="fsdp2"))
    check_launch(cfg, 2, {})
    with pytest.raises(UserError, match="train.parallel fsdp2 on one process"):
        check_launch(cfg, 1, {})


def test_number_of_processes_is_read_from_the_launchers_command(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("num_processes: 8\n")
    command = ["python", "/bin/accelerate", "launch"]
    assert _num_processes_of([*command, "--num_processes", "2", "train.py"]) == 2
    assert _num_processes_of([*command, "--num-processes=3", "train.py"]) == 3
    assert _num_processes_of([*command, "--config_file", str(file), "train.py"]) == 8
    assert _num_processes_of([*command, "train.py"]) is None


def test_accelerate_that_starts_one_process_instead_of_two_is_refused(tmp_path):
    """Also a canary: `accelerate launch --cpu --num_processes 2` still runs one, silently."""
    arguments = [
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "train_accelerate.py",
        *tiny_run(tmp_path),
    ]
    result = launch(arguments, script="accelerate.commands.accelerate_cli", module=True)
    assert "asked for 2 processes and started 1" in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_ranks_that_differ_are_named(tmp_path):
    """Rank 1 gets another seed and dataset: both are named, nothing is trained."""
    arguments = tiny_run(tmp_path)
    (tmp_path / "worker.py").write_text(
        "import os, sys, shutil\n"
        "import train_accelerate\n"
        "from errors import UserError, fail\n"
        "arguments = sys.argv[1:]\n"
        "if os.environ['RANK'] == '1':\n"
        "    arguments += ['--run.seed', '7', '--data.limit', '6']\n"
        "try:\n"
        "    train_accelerate.main(arguments)\n"
        "except UserError as error:\n"
        "    fail(error)\n"
    )
    result = launch(arguments, 2, script=str(tmp_path / "worker.py"))
    assert result.returncode != 0
    assert "the configuration on rank(s) 1; the dataset on rank(s) 1" in result.stderr
    assert "the code" not in result.stderr.split("Give all nodes")[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_code_digest_changes_with_every_file_of_a_run(tmp_path):
    """Also in rooms inside of rooms; not with tests, tools, benchmarks and conformance."""
    ours = [
        f.relative_to(ROOT) for f in ROOT.rglob("*.py") if f.relative_to(ROOT).parts[0][0] != "."
    ]
    ours = [file for file in ours if file.parts[0] != "runs"]
    for file in ours:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("a = 1\n")
    before = code_digest(tmp_path)
    unseen = set()
    for file in ours:
        (tmp_path / file).write_text("a = 2\n")
        unseen |= {file} if code_digest(tmp_path) == before else set()
        (tmp_path / file).write_text("a = 1\n")
    assert code_digest(tmp_path) == before
    assert {file.parts[0] for file in unseen} == {"tests", "tools", "benchmarks", "conformance"}
    assert len(ours) - len(unseen) > 80


def test_ranks_may_differ_in_facts_of_their_own(tmp_path):
    """Each has a device of its own; that is no other checkpoint."""
    (tmp_path / "worker.py").write_text(
        "import os, sys\n"
        "import run.build, train_accelerate\n"
        "facts = run.build.run_facts\n"
        "def own(*rest):\n"
        "    return {**facts(*rest), 'device': 'cuda:' + os.environ['RANK']}\n"
        "run.build.run_facts = own\n"
        "train_accelerate.main(sys.argv[1:])\n"
    )
    result = launch(tiny_run(tmp_path), 2, script=str(tmp_path / "worker.py"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "run/DONE").exists()


def test_error_of_the_main_rank_alone_ends_all_with_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    result = launch(tiny_run(tmp_path), 2)
    assert result.returncode != 0
    ours = result.stderr.partition("ChildFailedError")[0]
    assert ours.count("is not empty; choose another folder") == 1
    assert "gloo" not in ours
    assert "Connection closed" not in ours


@pytest.mark.parametrize("head", ["detr", "deformable_detr", "rf_detr_seg", "mask2former"])
def test_heads_without_deterministic_kernels_are_refused_on_a_gpu(head):
    check_deterministic(head, torch.device("cpu"))
    with pytest.raises(UserError, match=f"run.deterministic true: {head} on cuda needs"):
        check_deterministic(head, torch.device("cuda"))


def test_other_heads_may_be_deterministic_on_a_gpu():
    for head in ("maskformer", "pmd", "linear"):
        check_deterministic(head, torch.device("cuda"))


def test_kernels_that_torch_refuses_are_told_in_one_line():
    error = RuntimeError(
        "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
    )
    assert explain(error) == (
        "run.deterministic true: upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation "
        "on this device; set it false"
    )
