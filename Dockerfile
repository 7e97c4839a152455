# A server of an exported model, without torch:
#   python export.py --checkpoint output/sample/checkpoints/best --output_dir shipped
#   docker build -t labels . && docker run -p 8000:8000 labels
FROM python:3.11-slim
WORKDIR /app
COPY shipped/requirements.txt requirements-serve.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-serve.txt
COPY serve.py ./
COPY shipped shipped
USER nobody
EXPOSE 8000
CMD ["python", "serve.py", "shipped", "--host", "0.0.0.0"]
