/* WebP by libwebp; alpha is dropped. Of an animation the first frame is shown, on a black canvas.
 */
#include <webp/decode.h>
#include <webp/demux.h>

#include "inputs/image_codec.h"

static avl_status_t fail_webp(VP8StatusCode code) {
    switch (code) {
    case VP8_STATUS_OUT_OF_MEMORY:
        return avl_fail(AVL_ERR_MEMORY, "WebP: out of memory");
    case VP8_STATUS_UNSUPPORTED_FEATURE:
        return avl_fail(AVL_ERR_UNSUPPORTED, "WebP: unsupported feature");
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
        return avl_fail(AVL_ERR_INVALID, "WebP: the file ends early");
    case VP8_STATUS_BITSTREAM_ERROR:
        return avl_fail(AVL_ERR_INVALID, "WebP: bitstream error");
    default:
        return avl_fail(AVL_ERR_INVALID, "WebP: decoder status %d", (int)code);
    }
}

/* Decodes into `rgb`, whose rows are those of a canvas `canvas_width` pixels wide. */
static avl_status_t decode_still(const uint8_t *data, size_t data_bytes, int width, int height,
                                 int canvas_width, uint8_t *rgb) {
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config))
        return avl_fail(AVL_ERR_INTERNAL, "WebP: the library has another ABI version");
    size_t stride_bytes = (size_t)canvas_width * 3;
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = rgb;
    config.output.u.RGBA.stride = (int)stride_bytes;
    config.output.u.RGBA.size = stride_bytes * (size_t)(height - 1) + (size_t)width * 3;
    VP8StatusCode code = WebPDecode(data, data_bytes, &config);
    WebPFreeDecBuffer(&config.output);
    return code == VP8_STATUS_OK ? AVL_OK : fail_webp(code);
}

static avl_status_t decode_first_frame(avl_image_job_t *job) {
    WebPData data = {.bytes = job->file, .size = job->file_bytes};
    WebPDemuxer *demuxer = WebPDemux(&data);
    if (!demuxer)
        return avl_fail(AVL_ERR_INVALID, "WebP: the animation is malformed or ends early");
    WebPIterator frame = {0};
    avl_status_t status = AVL_OK;
    if (!WebPDemuxGetFrame(demuxer, 1, &frame)) {
        status = avl_fail(AVL_ERR_INVALID, "WebP: the animation has no frame");
        goto err_demuxer;
    }
    const avl_image_t *image = &job->image;
    if (frame.x_offset < 0 || frame.y_offset < 0 || frame.width < 1 || frame.height < 1 ||
        frame.width > image->width - frame.x_offset ||
        frame.height > image->height - frame.y_offset) {
        status = avl_fail(AVL_ERR_INVALID, "WebP: a frame of %d x %d at %d, %d leaves the canvas",
                          frame.width, frame.height, frame.x_offset, frame.y_offset);
        goto err_frame;
    }
    size_t offset = ((size_t)frame.y_offset * (size_t)image->width + (size_t)frame.x_offset) * 3;
    status = decode_still(frame.fragment.bytes, frame.fragment.size, frame.width, frame.height,
                          image->width, image->rgb + offset);
err_frame:
    WebPDemuxReleaseIterator(&frame);
err_demuxer:
    WebPDemuxDelete(demuxer);
    return status;
}

avl_status_t avl_image_decode_webp(avl_image_job_t *job) {
    WebPBitstreamFeatures features;
    VP8StatusCode code = WebPGetFeatures(job->file, job->file_bytes, &features);
    if (code != VP8_STATUS_OK)
        return fail_webp(code);
    AVL_TRY(avl_image_claim(job, "WebP", features.width, features.height));
    if (job->header_only)
        return AVL_OK;
    if (features.has_animation)
        return decode_first_frame(job);
    return decode_still(job->file, job->file_bytes, features.width, features.height, features.width,
                        job->image.rgb);
}
