"""FastAPI in front of the same Celery task, on uvicorn: the usual step after the tutorial."""

from fastapi import FastAPI
from pydantic import BaseModel, EmailStr
from tasks import sendMail  # type: ignore[import-not-found]  # the tutorial's, beside which this is run

app = FastAPI()


class Mail(BaseModel):
    to: EmailStr
    subject: str = ""
    contents: str = ""


@app.post("/", status_code=202)
def send(mail: Mail) -> dict[str, str]:
    return {"id": sendMail.delay(mail.to, mail.subject, mail.contents).id}
