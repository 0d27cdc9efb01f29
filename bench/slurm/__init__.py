"""Jobs on a SLURM cluster, through submitit.

``resources``: what a job asks for, and the sbatch text. ``submission``: jobs as arrays. ``registry``: what was
submitted, on disk, so that clients can come and go. ``states``: what the scheduler says. ``endings``: what that means
for a job's cells. ``client``: all of it together. ``entry``: what runs on the nodes.
"""
