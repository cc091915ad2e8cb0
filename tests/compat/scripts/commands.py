"""Commands of several tasks; the script ends right after submitting."""

from matforge.pipeline import Pipeline

pipe = Pipeline()

for word in ("forge", "anvil"):
    pipe.exec(command=["echo", word], num_tasks=10)
pipe.exec("echo 'one word' two", name="spoken", env={"LC_ALL": "C"}, inherit_env=True)

pipe.submit()
